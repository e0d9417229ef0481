"""A single run of projective clustering: Lloyd's alternation between subspaces and labels.

Source: Maalouf, Lang, Rus and Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021, section 2. The problem
is ``min sum_i w_i min_c dist(a_i, S_c)^2`` over k subspaces S_c of dimension j.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .subspaces import Subspaces, assign_rows, fit_subspaces, project_rows

# Called after every full step with its number (from 1) and its cost.
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Fit:
    """The outcome of a run.

    Attributes:
        labels: (n,) int64, the nearest subspace of each row.
        subspaces: the k subspaces.
        coefficients: (n, j) coordinates of each row in the basis of its cluster.
        residuals: (n,) squared error of each rebuilt row.
        inertia: weighted sum of `residuals`.
        cost_history: cost after each step, the last one after the exact finish.
    """

    labels: Tensor
    subspaces: Subspaces
    coefficients: Tensor
    residuals: Tensor
    inertia: float
    cost_history: list[float]


def climb_ranks(
    table: Tensor,
    norms: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    n_clusters: int,
    ranks: Sequence[int],
    affine: bool,
) -> Tensor:
    """Better labels to start from: two steps at each of the ascending `ranks`, all below the final one.

    Low-rank subspaces discriminate between rows that high-rank ones serve equally well, so the alternation settles
    the large structure first. On real tables this lowers the final cost more than further restarts do
    (scripts/bench_solver.py prints both).
    """
    for rank in ranks:
        for _ in range(2):
            subspaces = fit_subspaces(table, weights, labels, n_clusters, rank, affine)
            labels, _ = assign_rows(table, norms, subspaces)
    return labels


def alternate(
    table: Tensor,
    norms: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    n_clusters: int,
    rank: int,
    affine: bool,
    max_iter: int,
    tol: float,
    on_step: OnStep,
) -> Fit:
    """Full steps (fit subspaces, reassign rows) until no row moves, the cost falls by less than `tol`, or `max_iter`.

    Ends with one exact fit in float64 and a last assignment, so that the labels match the bases that are returned.
    """
    distances = norms
    history: list[float] = []
    capacity = rank + 1 if affine else rank
    while len(history) < max_iter:
        labels = fill_spare_clusters(labels, distances, norms, weights, n_clusters, capacity)
        subspaces = fit_subspaces(table, weights, labels, n_clusters, rank, affine)
        before = labels
        labels, distances = assign_rows(table, norms, subspaces)
        history.append(total_cost(distances, weights))
        on_step(len(history), history[-1])
        if torch.equal(before, labels):
            break
        if len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]:
            break
    subspaces = fit_subspaces(table, weights, labels, n_clusters, rank, affine, exact=True)
    labels, _ = assign_rows(table, norms, subspaces)
    return describe(table, weights, labels, subspaces, history)


def describe(
    table: Tensor, weights: Tensor | None, labels: Tensor, subspaces: Subspaces, cost_history: list[float]
) -> Fit:
    """The fit that `labels` and `subspaces` make, with its exact cost appended to the history."""
    coefficients, residuals = project_rows(table, labels, subspaces)
    inertia = total_cost(residuals, weights)
    return Fit(labels, subspaces, coefficients, residuals, inertia, [*cost_history, inertia])


def total_cost(distances: Tensor, weights: Tensor | None) -> float:
    """Weighted sum of squared distances, summed in float64."""
    exact = distances.double()
    return float((exact if weights is None else exact * weights.double()).sum())


def fill_spare_clusters(
    labels: Tensor,
    distances: Tensor,
    norms: Tensor,
    weights: Tensor | None,
    n_clusters: int,
    capacity: int,
) -> Tensor:
    """Give the worst-served rows to clusters that have fewer rows than a subspace passes through exactly.

    A linear subspace of rank j passes through any j rows, an affine one through any j + 1: that is the `capacity`. A
    cluster filled up to it costs nothing, and the clusters the rows leave cannot get worse, so the cost never rises.
    Only rows of positive weight count. Empty clusters are the extreme case.
    """
    counted = labels if weights is None else labels[weights > 0]
    sizes = torch.bincount(counted, minlength=n_clusters)
    spare = (capacity - sizes).clamp(min=0)
    if not spare.any():
        return labels
    importance = distances if weights is None else distances * weights.to(distances.dtype)
    # Rows that are already met up to rounding gain nothing, and rows of spare clusters stay where they are.
    rounding = 1e-5 if distances.dtype == torch.float32 else 1e-12
    candidates = (importance > 0) & (distances > rounding * norms) & (spare[labels] == 0)
    rows = candidates.nonzero().squeeze(1)
    rows = rows[importance[rows].argsort(descending=True, stable=True)]
    labels = labels.clone()
    start = 0
    for cluster in spare.nonzero().squeeze(1).tolist():
        taken = rows[start : start + int(spare[cluster])]
        labels[taken] = cluster
        start += len(taken)
    return labels
