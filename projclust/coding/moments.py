"""The classes of a table's rows, and what is to be known of them before bits are allotted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projclust.clustering.estimator import as_weights
from projclust.errors import ProjclustError

from .stored import stored_means

_BLOCK_ROWS = 8192
# Bands of rows by weight: the largest number, and how many rows of the table each needs on average.
_MOST_BANDS, _ROWS_A_BAND = 16, 128
# The rows of the first band, as a fraction of the table.
_FIRST_BAND = 0.001
# What a row weighs at least, as a fraction of the largest weight.
_LEAST_WEIGHT = 1e-9


@dataclass(frozen=True)
class Moments:
    """Of the rows of each class; everything squared is measured in the coordinates of the metric.

    Attributes:
        rows: (C,) how many.
        weights: (C,) the sum of their weights.
        means: (C, d) their weighted mean, as it will be read.
        squares: (C,) their weighted mean square.
        scatter: (C, d, d) weighted sum of the outer products of what is left of them without the mean, over `squares`.
    """

    rows: list[int]
    weights: Tensor
    means: Tensor
    squares: Tensor
    scatter: Tensor


def default_classes(n: int) -> int:
    """How many classes a table of n rows is worth."""
    return min(_MOST_BANDS, max(1, n // _ROWS_A_BAND))


def checked_weights(sample_weight: Any, n: int) -> Tensor:
    """(n,) float64 row weights on the CPU; ones by default.

    What weighs nothing counts a little all the same: a class of such rows alone would have no mean and no spread, and
    they would all be read as zeros.

    Raises:
        ProjclustError: they are negative, no numbers, all zero or of another shape.
    """
    given = as_weights(sample_weight, n, torch.device("cpu"))
    if given is None:
        return torch.ones(n, dtype=torch.float64)
    return given.clamp(min=float(given.max()) * _LEAST_WEIGHT)


def checked_metric(metric: Tensor | None, d: int) -> Tensor:
    """(d, d) float64 on the CPU; the identity by default.

    Raises:
        ProjclustError: it is not symmetric positive definite.
    """
    if metric is None:
        return torch.eye(d, dtype=torch.float64)
    metric = metric.double().cpu()
    wanted = metric.shape == (d, d) and bool(metric.isfinite().all()) and torch.allclose(metric, metric.mT)
    if not wanted or int(torch.linalg.cholesky_ex(metric).info) != 0:
        raise ProjclustError(f"the metric must be a symmetric positive definite matrix of shape ({d}, {d})")
    return metric


def bands(table: Tensor, weight: Tensor, count: int) -> Tensor:
    """(n,) classes: bands by falling weight whose sizes grow geometrically from `_FIRST_BAND` of the rows on."""
    n = len(table)
    lengths = torch.cat([rows.float().norm(dim=1) for rows in table.split(_BLOCK_ROWS)]).double().cpu()
    order = lengths.argsort(descending=True, stable=True)
    order = order[weight[order].argsort(descending=True, stable=True)]
    ratio = _growth(1 / _FIRST_BAND, count)
    edges = ratio ** torch.arange(1, count, dtype=torch.float64)
    ends = (n * (edges - 1) / (ratio**count - 1)).round() if ratio > 1 else n * torch.arange(1, count) / count
    # Every band has a row.
    ends = torch.maximum(ends.long(), torch.arange(1, count))
    ids = torch.empty(n, dtype=torch.int64)
    ids[order] = torch.bucketize(torch.arange(n), ends, right=True)
    return ids.to(table.device)


def row_blocks(ids: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """(class, row numbers) in blocks, class by class, rising."""
    for number in range(count):
        rows = (ids == number).nonzero().squeeze(1)
        for start in range(0, len(rows), _BLOCK_ROWS):  # none where there are none
            yield number, rows[start : start + _BLOCK_ROWS]


def moments_of(table: Tensor, ids: Tensor, weight: Tensor, metric: Tensor, count: int) -> Moments:
    """The moments of the rows in classes `ids`, (n,), with row weights, (n,), and a metric (d, d)."""
    d, device = table.shape[1], table.device
    weight = weight.to(device)
    weights = torch.zeros(count, dtype=torch.float64, device=device).index_add_(0, ids, weight)
    means = torch.zeros(count, d, dtype=torch.float64, device=device)
    for number, block in row_blocks(ids, count):
        means[number] += weight[block] @ table[block].double()
    means = stored_means(means / weights.clamp(min=1e-300).unsqueeze(1)).double()
    squares = torch.zeros(count, dtype=torch.float64, device=device)
    scatter = torch.zeros(count, d, d, dtype=torch.float64, device=device)
    for number, block in row_blocks(ids, count):
        rows, own = table[block].double(), weight[block]
        squares[number] += own @ (rows @ metric).square().sum(1)
        left = (rows - means[number]) @ metric
        scatter[number] += (left * own.unsqueeze(1)).T @ left
    squares /= weights.clamp(min=1e-300)
    scatter /= squares.clamp(min=1e-300)[:, None, None]
    return Moments(torch.bincount(ids, minlength=count).tolist(), weights, means, squares, scatter)


def _growth(total: float, count: int) -> float:
    """The ratio of a geometric series of `count` terms from 1 on that sums to `total`; 1 where that many ones do."""
    if total <= count:
        return 1.0
    # The last term alone is no more than the total.
    low, high = 1.0 + 1e-9, total ** (1 / max(count - 1, 1))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if (middle**count - 1) / (middle - 1) > total else (middle, high)
    return high
