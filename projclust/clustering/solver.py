"""A single run of projective clustering: alternating minimisation over subspaces and labels, made cheap.

Source: Maalouf, Lang, Rus and Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021, section 2. Each step

* reassigns rows by Hartigan's test instead of by distance alone (reassignment.py), and compares only the candidate
  subspaces of each row, which came close to its best one when all were compared last;
* improves the bases by two steps of orthogonal iteration on Gram matrices, which are updated by the rows that moved.

The cost never rises. Bases take many steps to converge and labels few, so the run does not wait for the bases: when
moving rows gains next to nothing, an exact fit in float64 and a comparison of all subspaces for all rows show whether
the run is at its end.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from projclust.clustering.inputs import ClusteringOptions
from projclust.clustering.reassignment import GAP_LEVELS, Leverage, propose_moves, propose_moves_among
from projclust.clustering.rows import Rows
from projclust.clustering.scatter import ClusterScatter, fit_subspaces
from projclust.clustering.subspaces import Subspaces, assign_rows, orthonormal_rows, project_rows

# Called after every full step with the number of the step, from 1, and its cost.
OnStep = Callable[[int, float], None]

# The share of all pairs of a row and another subspace than its own that are candidates between full comparisons.
_CANDIDATE_SHARE = 1 / 8

# Rank continuation takes at most so many steps at the rank of the start, which has converged on a sample, and at the
# next rank; it leaves a rank when the steps gain no more than the tolerance.
_CONTINUATION_STEPS = (2, 4)
_CONTINUATION_TOL = 1e-3


@dataclass(frozen=True)
class Solution:
    """The labels and subspaces that a run ended with, their cost, and the cost after each step."""

    labels: Tensor  # (n,) int64; with equal ranks the nearest subspace of each row
    subspaces: Subspaces  # fitted to the labels before the last reassignment, like the scatter that comes with it
    spectra: Tensor  # (k, d) float64 eigenvalues of each cluster's scatter
    cost: float
    history: list[float]


@dataclass(frozen=True)
class Clustering:
    """The result of a fit; tensors are on the computing device.

    Attributes:
        labels: (n,) int64, the cluster of each row.
        bases: (k, j, d) the orthonormal basis of each subspace, strongest direction first; zero beyond its own rank.
        means: (k, d) a point of each subspace, or None where all pass through the origin.
        ranks: the dimension of each subspace; the largest is j.
        coefficients: (n, j) the coordinates of each row in the basis of its cluster, zero beyond the cluster's rank.
        inertia: the sum of the rows' losses times their weights; with the l2 loss, of `residuals`.
        residuals: (n,) the squared error of each rebuilt row.
        spectra: (k, d) float64 eigenvalues of each cluster's scatter, largest first. The squared error of cluster c at
            any rank r is ``spectra[c, r:].sum()``.
        cost_history: the cost after each step; the last entry is `inertia`, after the exact fit at the end.
    """

    labels: Tensor
    bases: Tensor
    means: Tensor | None
    ranks: list[int]
    coefficients: Tensor
    inertia: float
    residuals: Tensor
    spectra: Tensor
    cost_history: list[float]


def fit_equal_ranks(
    rows: Rows, start: Tensor, options: ClusteringOptions, generator: torch.Generator, on_step: OnStep
) -> tuple[ClusterScatter, Solution]:
    """Continue from low-rank bases `start` (k, r, d) to full rank, and alternate there until it no longer pays."""
    rank, affine, max_iter, tol = options.rank, options.affine, options.max_iter, options.tol
    k, lowest, _ = start.shape
    labels = assign_rows(rows, Subspaces.of(start)).labels
    order = _balanced_order(rows.count(labels, k))
    start, labels = start[order], order.argsort()[labels]
    scatter = ClusterScatter(rows, labels, k, affine)
    subspaces = Subspaces.of(start, scatter.means())
    halves = torch.randint(2, (rows.total,), generator=generator, dtype=torch.bool)
    halves = rows.collective.deal(halves.to(rows.device))
    levels = (lowest, round((lowest * rank) ** 0.5)) if lowest < rank else ()
    for level, steps in zip(levels, _CONTINUATION_STEPS, strict=False):
        # Twice the directions in use, so that the next level finds good ones.
        subspaces = enlarge_bases(scatter, subspaces, min(2 * level, rank), generator)
        subspaces = replace(subspaces, ranks=[level] * k)
        subspaces, _ = alternate(scatter, subspaces, halves, steps, _CONTINUATION_TOL)
    subspaces = enlarge_bases(scatter, Subspaces.of(subspaces.bases, subspaces.means), rank, generator)
    history: list[float] = []
    while True:
        # What is left after a search in low precision needs full precision.
        coarse = not history
        subspaces, costs = alternate(scatter, subspaces, halves, max_iter - len(history), tol, on_step, coarse)
        history += costs
        subspaces, spectra = fit_subspaces(rows, scatter.labels, k, rank, affine)
        labels, distances = assign_rows(rows, subspaces)
        cost = rows.weighted_sum(distances)
        gained = 1 - cost / max(float(spectra[:, rank:].sum()), 1e-300)
        if len(history) >= max_iter or gained <= max(tol, 8 * torch.finfo(rows.dtype).eps):
            return scatter, Solution(labels, subspaces, spectra, cost, history)
        scatter.update(labels)
        history.append(cost)
        on_step(len(history), cost)


def _balanced_order(sizes: Tensor) -> Tensor:
    """An order in which large and small clusters alternate, so that processes own about as many rows each."""
    order = sizes.argsort(descending=True, stable=True)
    half = (len(order) + 1) // 2
    return torch.stack([order[:half], order.flip(0)[:half]], 1).flatten()[: len(order)]


def enlarge_bases(scatter: ClusterScatter, subspaces: Subspaces, rank: int, generator: torch.Generator) -> Subspaces:
    """Add random directions to bases up to `rank`, and improve all by one step of orthogonal iteration."""
    k, given, d = subspaces.bases.shape
    more = torch.randn(k, rank - given, d, dtype=subspaces.bases.dtype, generator=generator)
    bases = orthonormal_rows(torch.cat([subspaces.bases, more.to(subspaces.bases.device)], 1))
    return scatter.iterate(Subspaces.of(bases, subspaces.means))[0]


def alternate(
    scatter: ClusterScatter,
    subspaces: Subspaces,
    halves: Tensor,
    max_iter: int,
    tol: float,
    on_step: OnStep = lambda step, cost: None,
    coarse: bool = True,
) -> tuple[Subspaces, list[float]]:
    """Alternate between the labels, which `scatter` holds, and subspaces of fixed ranks.

    The two halves of the rows, (n,) bool, take turns: the gain of a move is that of one row alone, and rows that all
    moved at once would miss each other. A step that raises the cost after all is taken back. From there on rows move by
    distance alone, which cannot raise it. The end is where the moves of two steps are expected to gain no more than
    `tol` of the cost. With `coarse`, labels may be chosen in a lower precision than that of sums. Returns the
    subspaces, one iteration better than those of the last cost, and the cost after each step.
    """
    rows, rank = scatter.rows, subspaces.ranks[0]
    subspaces, energies, cost = scatter.iterate(subspaces)
    total = max(rows.weighted_sum(rows.norms), 1e-300)
    history: list[float] = []
    gains = [torch.inf]
    gaps = torch.zeros(len(rows), len(subspaces), dtype=torch.uint8, device=rows.device)
    candidates = torch.zeros_like(gaps, dtype=torch.bool)
    compared = 0  # the number of halves for which all subspaces were compared; both make candidates known
    by_leverage = True  # whether rows move by Hartigan's test or by distance alone
    while len(history) < max_iter:
        before, acting = scatter.labels, halves == bool(len(history) % 2)
        leverage = scatter.leverage(energies[:, :rank]) if by_leverage else Leverage.none(subspaces)
        dtype = rows.search_dtype(cost / total) if coarse else rows.dtype
        if compared < 2:
            which = acting.nonzero().squeeze(1)
            proposal, gaps[which] = propose_moves(rows, subspaces, before, leverage, dtype, which)
            compared += 1
            if compared == 2:
                candidates = _candidate_subspaces(rows, before, gaps)
        else:
            allowed = candidates & acting.unsqueeze(1)
            proposal = propose_moves_among(rows, subspaces, before, leverage, allowed, dtype)
        filled = fill_small_clusters(rows, subspaces, proposal.labels)
        moved = scatter.update(filled)
        improved, new_energies, new_cost = scatter.iterate(subspaces, steps=2)
        if moved and new_cost >= cost:
            scatter.update(before)
            if not by_leverage:  # the precision does not resolve what is left to gain
                break
            compared, by_leverage = 0, False
            continue
        subspaces, energies, cost = improved, new_energies, new_cost
        history.append(cost)
        on_step(len(history), cost)
        gains.append(rows.weighted_sum(proposal.gains) / max(cost, 1e-300))
        if filled is not proposal.labels:  # the filled clusters were not candidates for the rows they now resemble
            compared = 0
        elif gains[-2] + gains[-1] <= tol:
            break
    return subspaces, history


def evaluate(rows: Rows, labels: Tensor, subspaces: Subspaces, spectra: Tensor, history: list[float]) -> Clustering:
    """The clustering of this process's rows by labels and subspaces; its exact cost is appended to the history."""
    coefficients, residuals = project_rows(rows, labels, subspaces)
    inertia = rows.weighted_sum(residuals)
    return Clustering(
        labels=labels,
        bases=subspaces.bases,
        means=subspaces.means,
        ranks=subspaces.ranks,
        coefficients=coefficients,
        inertia=inertia,
        residuals=residuals,
        spectra=spectra,
        cost_history=[*history, inertia],
    )


def _candidate_subspaces(rows: Rows, labels: Tensor, gaps: Tensor) -> Tensor:
    """(n, k) bool, which subspaces to compare for each row: its own, and those whose gap to its best is small."""
    # The bound on gaps is set by the share of pairs that it admits. Rows with no candidate but their own have none.
    counts = rows.count(gaps.flatten().int(), GAP_LEVELS + 1)
    counts[0] -= rows.total  # the best ones
    within = counts.cumsum(0) <= _CANDIDATE_SHARE * counts.sum()
    candidates = gaps < within.sum()
    candidates.scatter_(1, labels.unsqueeze(1), True)
    candidates &= candidates.sum(1, keepdim=True) > 1
    return candidates


def fill_small_clusters(rows: Rows, subspaces: Subspaces, labels: Tensor) -> Tensor:
    """Give the worst-served rows to clusters that have fewer rows than their subspace can pass through exactly.

    A linear subspace of rank j passes through any j rows, and an affine one through any j + 1: that is its capacity. A
    cluster filled up to its capacity costs nothing, and the clusters that the rows leave cannot get worse, so the cost
    never rises. Only rows of positive weight count. Empty clusters are the extreme case. The result is `labels` itself
    where no cluster is too small or no row is served badly.
    """
    capacity = torch.tensor(subspaces.ranks, device=rows.device) + (subspaces.means is not None)
    counted = labels if rows.weights is None else labels[rows.weights > 0]
    vacancies = (capacity - rows.count(counted, len(subspaces))).clamp(min=0)
    if not vacancies.any():
        return labels
    _, distances = project_rows(rows, labels, subspaces)
    importance = rows.weighted(distances)
    # Rows that their subspace meets up to rounding gain nothing, and rows of small clusters stay where they are.
    rounding = 1e-5 if rows.dtype == torch.float32 else 1e-12
    movable = (importance > 0) & (distances > rounding * rows.norms) & (vacancies[labels] == 0)
    all_importance = rows.gather(torch.where(movable, importance, 0))
    worst = all_importance.argsort(descending=True, stable=True)[: int(vacancies.sum())]
    worst = worst[all_importance[worst] > 0]
    if len(worst) == 0:
        return labels
    all_labels = rows.gather(labels).clone()
    all_labels[worst] = torch.repeat_interleave(vacancies)[: len(worst)]
    return rows.collective.deal(all_labels)
