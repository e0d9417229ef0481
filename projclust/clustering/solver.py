"""A single run of projective clustering: Lloyd's alternation between subspaces and labels, made cheap.

Source: Maalouf, Lang, Rus and Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021, section 2. The problem
is ``min sum_i w_i min_c dist(a_i, S_c)^2`` over k subspaces S_c of dimension j. Here a step

* improves the bases by one step of orthogonal iteration on Gram matrices that follow the rows that moved, and
* looks only at subspaces that came close to being a row's nearest when all were looked at last.

Both never raise the cost. The run ends only after a step that looked at all subspaces for all rows and gained nothing
to speak of; then come one exact fit in float64 and a last assignment.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Moments, fit_subspaces
from .rows import Rows
from .subspaces import (
    GAP_LEVELS,
    Subspaces,
    assign_contested_rows,
    assign_rows,
    orthonormal_rows,
    project_rows,
)

# Called after every full step with its number (from 1) and its cost.
OnStep = Callable[[int, float], None]

# Of all pairs of a row and a subspace that is not its nearest, the share looked at between full looks.
_CONTESTED_SHARE = 1 / 8

# At every rank on the way up, the most steps and the fall in cost that ends them.
_CLIMBING_STEPS = 6
_CLIMBING_TOL = 1e-3


@dataclass(frozen=True)
class Fit:
    """The outcome of a run.

    Attributes:
        labels: (n,) int64, the nearest subspace of each row.
        subspaces: the k subspaces.
        spectra: (k, d) float64 eigenvalues of each cluster's scatter.
        coefficients: (n, j) coordinates of each row in the basis of its cluster.
        residuals: (n,) squared error of each rebuilt row.
        inertia: weighted sum of `residuals`.
        cost_history: cost after each step, the last one after the exact finish.
    """

    labels: Tensor
    subspaces: Subspaces
    spectra: Tensor
    coefficients: Tensor
    residuals: Tensor
    inertia: float
    cost_history: list[float]


def alternate(
    rows: Rows,
    start: Tensor,
    rank: int,
    affine: bool,
    max_iter: int,
    tol: float,
    generator: torch.Generator,
    on_step: OnStep,
) -> tuple[Moments, Subspaces, list[float]]:
    """Climb from low-rank subspaces to full rank, and alternate there until it no longer pays.

    Args:
        rows: n rows.
        start: (k, r, d) orthonormal bases, r at most `rank`.
        rank: j, of the result.
        affine: whether the subspaces get means.
        max_iter: most steps at full rank.
        tol: stop when a look at all subspaces lowers the cost by no more than this fraction of it.
        generator: of directions to complete the bases with.
        on_step: told of every step at full rank.

    Returns:
        the moments, with the labels; the subspaces; and the cost after each step at full rank.
    """
    k, level, _ = start.shape
    moments = Moments(rows, assign_rows(rows, Subspaces.of(start)).labels, k, affine)
    subspaces = Subspaces.of(start, moments.means())
    while level < rank:
        # Twice the directions in use, so that the next level finds good ones.
        subspaces = extended(moments, subspaces, min(2 * level, rank), generator)
        subspaces, _ = descend(moments, subspaces.truncated(level), _CLIMBING_STEPS, _CLIMBING_TOL)
        level *= 2
    subspaces, history = descend(moments, Subspaces.of(subspaces.bases, subspaces.means), max_iter, tol, on_step)
    return moments, subspaces, history


def extended(moments: Moments, subspaces: Subspaces, size: int, generator: torch.Generator) -> Subspaces:
    """The bases with further directions, random ones at first, up to `size` of them."""
    k, given, d = subspaces.bases.shape
    more = torch.randn(k, size - given, d, dtype=subspaces.bases.dtype, generator=generator)
    bases = orthonormal_rows(torch.cat([subspaces.bases, more.to(subspaces.bases.device)], 1))
    subspaces = Subspaces.of(bases, subspaces.means)
    for _ in range(2):
        subspaces, _, _ = moments.improve(subspaces)
    return subspaces


def descend(
    moments: Moments, subspaces: Subspaces, max_iter: int, tol: float, on_step: OnStep = lambda step, cost: None
) -> tuple[Subspaces, list[float]]:
    """Alternate between labels, which `moments` holds, and subspaces of fixed ranks.

    Returns:
        the subspaces, one step better than those of the last cost; and the cost after each step.
    """
    rows = moments.rows
    history: list[float] = []
    contenders: Tensor | None = None  # of the rows, once all subspaces were looked at
    while len(history) < max_iter:
        complete = contenders is None
        if contenders is None:
            look = assign_rows(rows, subspaces)
            labels, contenders = look.labels, _contenders(rows, look.gaps)
        else:
            labels = assign_contested_rows(rows, subspaces, moments.labels, contenders)
        filled = fill_spare_clusters(rows, subspaces, labels)
        moments.move(filled)
        if filled is not labels:  # to these rows the old bases mean nothing, nor did they contend
            subspaces, _, _ = moments.improve(subspaces)
            contenders = None
        subspaces, _, cost = moments.improve(subspaces)
        history.append(cost)
        on_step(len(history), cost)
        fall = 1.0 if len(history) == 1 else 1 - cost / max(history[-2], 1e-300)
        if complete and fall <= tol:
            break
        if fall <= tol:
            contenders = None
    return subspaces, history


def finish(rows: Rows, labels: Tensor, n_clusters: int, rank: int, affine: bool, history: list[float]) -> Fit:
    """One exact fit to the labels, and a last assignment, so that the labels match it."""
    subspaces, spectra = fit_subspaces(rows, labels, n_clusters, rank, affine)
    return describe(rows, assign_rows(rows, subspaces).labels, subspaces, spectra, history)


def describe(rows: Rows, labels: Tensor, subspaces: Subspaces, spectra: Tensor, history: list[float]) -> Fit:
    """The fit that `labels` and `subspaces` make, with its exact cost appended to the history."""
    coefficients, residuals = project_rows(rows, labels, subspaces)
    inertia = rows.weighted_sum(residuals)
    return Fit(labels, subspaces, spectra, coefficients, residuals, inertia, [*history, inertia])


def _contenders(rows: Rows, gaps: Tensor) -> Tensor:
    """(n, k) which subspaces to look at until all are looked at again: those close to being a row's nearest.

    How close is set by the share of pairs that this leaves. Rows with nothing but their nearest have none.
    """
    counts = rows.team.sum(torch.bincount(gaps.flatten().int(), minlength=GAP_LEVELS + 1))
    counts[0] -= rows.total  # the nearest ones
    within = counts.cumsum(0) <= _CONTESTED_SHARE * counts.sum()
    contenders = gaps < within.sum()
    contenders &= contenders.sum(1, keepdim=True) > 1
    return contenders


def fill_spare_clusters(rows: Rows, subspaces: Subspaces, labels: Tensor) -> Tensor:
    """Give the worst-served rows to clusters that have fewer rows than a subspace passes through exactly.

    A linear subspace of rank j passes through any j rows, an affine one through any j + 1: that is the `capacity`. A
    cluster filled up to it costs nothing, and the clusters the rows leave cannot get worse, so the cost never rises.
    Only rows of positive weight count. Empty clusters are the extreme case.

    Returns:
        (n,) new labels, or `labels` itself where nothing is to be done.
    """
    capacity = torch.tensor(subspaces.ranks, device=rows.device) + (subspaces.means is not None)
    counted = labels if rows.weights is None else labels[rows.weights > 0]
    sizes = rows.team.sum(torch.bincount(counted, minlength=len(subspaces)))
    spare = (capacity - sizes).clamp(min=0)
    if not spare.any():
        return labels
    distances = project_rows(rows, labels, subspaces)[1]
    importance = distances if rows.weights is None else distances * rows.weights
    # Rows that are already met up to rounding gain nothing, and rows of spare clusters stay where they are.
    rounding = 1e-5 if rows.dtype == torch.float32 else 1e-12
    candidates = (importance > 0) & (distances > rounding * rows.norms) & (spare[labels] == 0)
    everybody = rows.gather(torch.where(candidates, importance, 0))
    worst = everybody.argsort(descending=True, stable=True)[: int(spare.sum())]
    worst = worst[everybody[worst] > 0]
    if len(worst) == 0:
        return labels
    takers = torch.arange(len(spare), device=spare.device).repeat_interleave(spare)[: len(worst)]
    places, mine = rows.own(worst)
    labels = labels.clone()
    labels[mine] = takers[places]
    return labels
