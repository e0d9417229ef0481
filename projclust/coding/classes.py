"""The classes of a table's rows, and what is to be known of them before bits are allotted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projclust.clustering.inputs import as_ordinary, as_table, as_weights
from projclust.clustering.rows import rows_at_once
from projclust.coding.stored import stored_means
from projclust.errors import ProjclustError
from projclust.shapes import MOST_CLASSES

# By default there are so many classes at most, each with so many rows of the table on average.
_DEFAULT_MOST, _DEFAULT_ROWS = 16, 128
# The rows of the first class, as a fraction of the table.
_FIRST_CLASS = 0.001
# What a row weighs at least, as a fraction of the largest weight.
_LEAST_WEIGHT = 1e-9
# A row is far longer than others when it is so many times as long as nine tenths of all rows are at most.
_FAR, _NEARLY_ALL = 8.0, 0.9


@dataclass(frozen=True)
class ClassedRows:
    """The rows of a table, each of which belongs to a class."""

    table: Tensor  # (n, d) of any float dtype
    ids: Tensor  # (n,) int64, the class of each row
    count: int  # of classes
    weights: Tensor  # (n,) float64
    exponent: int = 0  # what is stored is the table times two to this power

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(class, row numbers) of blocks of rows, class by class, rising."""
        size = rows_at_once(self.table)
        for number in range(self.count):
            rows = (self.ids == number).nonzero().squeeze(1)
            for start in range(0, len(rows), size):  # none where there are none
                yield number, rows[start : start + size]


@dataclass(frozen=True)
class ClassStatistics:
    """What is known of the rows of each class; everything squared is measured in the sensitivity's coordinates."""

    rows: list[int]  # how many there are
    weights: Tensor  # (C,) the sum of their weights
    means: Tensor  # (C, d) their weighted mean, as it will be read
    squares: Tensor  # (C,) their weighted mean square
    scatter: Tensor  # (C, d, d) the weighted sum of the outer products of rows without their mean, over `squares`


def default_classes(n: int) -> int:
    """How many classes a table of n rows is worth."""
    return min(_DEFAULT_MOST, max(1, n // _DEFAULT_ROWS))


def classes_by_weight(table: Any, sample_weight: Any, count: int | None) -> ClassedRows:
    """A table's rows in classes of falling weight, and of falling length where weights are equal.

    The first class has a thousandth of the rows; from there on sizes grow geometrically. Rows that weigh nothing count
    a little all the same: a class of such rows alone would have no mean and no spread, and they would read as zeros.
    Rows that are far longer than nearly all others come first, in classes of their own, for one of them would give the
    others of its class a mean and a spread that are far from theirs.
    """
    table, exponent = as_ordinary(as_table(table))
    n, weights = len(table), as_weights(sample_weight, len(table), torch.device("cpu"))
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights
    weights = weights.clamp(min=float(weights.max()) * _LEAST_WEIGHT)
    if count is not None and not 1 <= count <= MOST_CLASSES:
        raise ProjclustError(f"coded tables have 1 to {MOST_CLASSES} classes, not {count}")
    lengths, size = torch.empty(n, dtype=torch.float64), rows_at_once(table)
    for rows, into in zip(table.split(size), lengths.split(size), strict=True):
        into.copy_(rows.float().norm(dim=1))
    most = default_classes(n) if count is None else count
    far = _far_classes(lengths, max(most // 4, int(count is None or count > 1)))
    first = int(far.max()) + 1
    count = max(most, first + 1)
    order = lengths.argsort(descending=True, stable=True)
    order = order[weights[order].argsort(descending=True, stable=True)]
    order, ids = order[far[order] < 0], far
    near = len(order)
    ids[order] = first + torch.bucketize(torch.arange(near), _ends(near, count - first), right=True)
    ids, weights = ids.to(table.device), weights.to(table.device)
    return ClassedRows(table=table, ids=ids, count=count, weights=weights, exponent=exponent)


def _far_classes(lengths: Tensor, most: int) -> Tensor:
    """(n,) int64, for each row that is far longer than nine tenths of all its class, the longest in class 0; else -1.

    A class spans one step of length, but for the last of `most`, which has all that are left.
    """
    typical = lengths.kthvalue(math.ceil(_NEARLY_ALL * len(lengths))).values
    steps = (lengths / typical.clamp(min=1e-300)).clamp(min=1).log() / math.log(_FAR)
    steps = steps.floor().long() * (typical > 0)
    found = [step for step in steps.unique().flip(0).tolist() if step > 0]
    far = torch.full_like(steps, -1)
    for number, step in enumerate(found if most else []):
        far[steps == step] = min(number, most - 1)
    return far


def checked_sensitivity(sensitivity: Tensor | None, table: Tensor) -> Tensor:
    """(d, d) float64 on the table's device; the identity by default."""
    d = table.shape[1]
    if sensitivity is None:
        return torch.eye(d, dtype=torch.float64, device=table.device)
    given = sensitivity.double().cpu()
    wanted = given.shape == (d, d) and bool(given.isfinite().all()) and torch.allclose(given, given.mT)
    if not wanted or int(torch.linalg.cholesky_ex(given).info) != 0:
        raise ProjclustError(f"the sensitivity must be a symmetric positive definite matrix of shape ({d}, {d})")
    return given.to(table.device)


def class_statistics(rows: ClassedRows, sensitivity: Tensor) -> ClassStatistics:
    """The statistics of every class, for a sensitivity as `checked_sensitivity` gives it."""
    table, count = rows.table, rows.count
    d, device = table.shape[1], table.device
    weights = torch.zeros(count, dtype=torch.float64, device=device).index_add_(0, rows.ids, rows.weights)
    means = torch.zeros(count, d, dtype=torch.float64, device=device)
    for number, block in rows.blocks():
        means[number] += rows.weights[block] @ table[block].double()
    means = stored_means(means / weights.clamp(min=1e-300).unsqueeze(1)).double()
    squares = torch.zeros(count, dtype=torch.float64, device=device)
    scatter = torch.zeros(count, d, d, dtype=torch.float64, device=device)
    for number, block in rows.blocks():
        own, weight = table[block].double(), rows.weights[block]
        squares[number] += weight @ (own @ sensitivity).square_().sum(1)
        # In place, for these are the largest temporaries of a fit.
        left = own.sub_(means[number]) @ sensitivity
        del own
        scatter[number] += (left * weight.unsqueeze(1)).T @ left
    squares /= weights.clamp(min=1e-300)
    scatter /= squares.clamp(min=1e-300)[:, None, None]
    counts = torch.bincount(rows.ids, minlength=count).tolist()
    return ClassStatistics(rows=counts, weights=weights, means=means, squares=squares, scatter=scatter)


def _ends(n: int, count: int) -> Tensor:
    """(count - 1,) one past the last row of every class but the last."""
    ratio = _growth(1 / _FIRST_CLASS, count)
    edges = ratio ** torch.arange(1, count, dtype=torch.float64)
    ends = (n * (edges - 1) / (ratio**count - 1)).round() if ratio > 1 else n * torch.arange(1, count) / count
    # Every class has a row.
    return torch.maximum(ends.long(), torch.arange(1, count))


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
