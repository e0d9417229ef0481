"""A single run of projective clustering: an alternation between subspaces and labels, made cheap.

Source: Maalouf, Lang, Rus and Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021, section 2. The problem
is ``min sum_i w_i min_c dist(a_i, S_c)^2`` over k subspaces S_c of dimension j. Here a step

* moves rows by what both subspaces make of the move, not by distance alone (moves.py), and looks only at subspaces that
  came close to being a row's best when all were looked at last;
* improves the bases by two steps of orthogonal iteration on Gram matrices that follow the rows that moved.

It never raises the cost. Bases need many steps to settle, labels few, so the run does not wait for the bases: when
moving rows gains nothing more to speak of, an exact fit in float64 and a look at all subspaces for all rows say whether
that was all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Moments, fit_subspaces
from .moves import GAP_LEVELS, Leverage, look_at_all, look_at_contested
from .rows import Rows
from .subspaces import Subspaces, assign_rows, orthonormal_rows, project_rows

# Called after every full step with its number (from 1) and its cost.
OnStep = Callable[[int, float], None]

# Of all pairs of a row and a subspace it is not in, the share looked at between full looks.
_CONTESTED_SHARE = 1 / 8

# On the way up: the most steps at the rank of the start, which has settled on a sample, and at the next one; and the
# gain that ends them.
_CLIMBING_STEPS = (2, 4)
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


@dataclass(frozen=True)
class Settled:
    """Where a run of equal ranks ended.

    Attributes:
        labels: (n,) int64, the nearest subspace of each row.
        subspaces: the best ones for the labels before the last look.
        spectra: (k, d) float64 eigenvalues of each cluster's scatter.
        cost: of labels and subspaces.
        history: cost after each step.
    """

    labels: Tensor
    subspaces: Subspaces
    spectra: Tensor
    cost: float
    history: list[float]


def alternate(
    rows: Rows,
    start: Tensor,
    rank: int,
    affine: bool,
    max_iter: int,
    tol: float,
    generator: torch.Generator,
    on_step: OnStep,
) -> tuple[Moments, Settled]:
    """Climb from low-rank subspaces to full rank, and alternate there until it no longer pays.

    Args:
        rows: n rows.
        start: (k, r, d) orthonormal bases, r at most `rank`.
        rank: j, of the result.
        affine: whether the subspaces get means.
        max_iter: most steps at full rank.
        tol: stop when the rows' moves in two steps, and then a look at all subspaces, gain no more than this fraction
            of the cost.
        generator: of directions to complete the bases with, and of the halves of the rows that take turns.
        on_step: told of every step at full rank.

    Returns:
        the moments, with the labels before the last look, and where the run ended.
    """
    k, lowest, _ = start.shape
    labels = assign_rows(rows, Subspaces.of(start)).labels
    order = _large_and_small_in_turn(rows.team.sum(torch.bincount(labels, minlength=k)))
    start, labels = start[order], order.argsort()[labels]
    moments = Moments(rows, labels, k, affine)
    subspaces = Subspaces.of(start, moments.means())
    halves = torch.randint(2, (rows.total,), generator=generator, dtype=torch.bool).to(rows.device)[rows.numbers]
    levels = (lowest, round((lowest * rank) ** 0.5)) if lowest < rank else ()
    for level, steps in zip(levels, _CLIMBING_STEPS, strict=False):
        # Twice the directions in use, so that the next level finds good ones.
        subspaces = extended(moments, subspaces, min(2 * level, rank), generator)
        subspaces, _ = descend(moments, subspaces.truncated(level), halves, steps, _CLIMBING_TOL)
    subspaces = extended(moments, Subspaces.of(subspaces.bases, subspaces.means), rank, generator)
    history: list[float] = []
    coarse = True
    while True:
        subspaces, costs = descend(moments, subspaces, halves, max_iter - len(history), tol, on_step, coarse)
        history += costs
        subspaces, spectra = fit_subspaces(rows, moments.labels, k, rank, affine)
        look = assign_rows(rows, subspaces)
        cost = rows.weighted_sum(look.distances)
        gained = 1 - cost / max(float(spectra[:, rank:].sum()), 1e-300)
        if len(history) >= max_iter or gained <= max(tol, 8 * torch.finfo(rows.dtype).eps):
            return moments, Settled(look.labels, subspaces, spectra, cost, history)
        # What a coarse search left over is for exact looks.
        moments.move(look.labels)
        history.append(cost)
        on_step(len(history), cost)
        coarse = False


def _large_and_small_in_turn(sizes: Tensor) -> Tensor:
    """An order of clusters in which neighbours together have as many rows as other neighbours: fair to processes."""
    order = sizes.argsort(descending=True, stable=True)
    half = (len(order) + 1) // 2
    return torch.stack([order[:half], order.flip(0)[:half]], 1).flatten()[: len(order)]


def extended(moments: Moments, subspaces: Subspaces, size: int, generator: torch.Generator) -> Subspaces:
    """The bases with further directions, random ones turned once to where the rows are, up to `size` of them."""
    k, given, d = subspaces.bases.shape
    more = torch.randn(k, size - given, d, dtype=subspaces.bases.dtype, generator=generator)
    bases = orthonormal_rows(torch.cat([subspaces.bases, more.to(subspaces.bases.device)], 1))
    return moments.improve(Subspaces.of(bases, subspaces.means))[0]


def descend(
    moments: Moments,
    subspaces: Subspaces,
    halves: Tensor,
    max_iter: int,
    tol: float,
    on_step: OnStep = lambda step, cost: None,
    coarse: bool = True,
) -> tuple[Subspaces, list[float]]:
    """Alternate between labels, which `moments` holds, and subspaces of fixed ranks.

    Rows move half of them at a time: what a move gains holds for one row, and all at once would pass each other by. A
    step that raises the cost after all is taken back, and from there on rows move by distance alone, which cannot.

    Args:
        moments: with the labels so far.
        subspaces: of one rank.
        halves: (n,) bool, which half each row is in.
        max_iter: most steps.
        tol: stop when two steps' moves are expected to gain no more than this fraction of the cost.
        on_step: told of every step.
        coarse: whether looks may be less exact than sums.

    Returns:
        the subspaces, one step better than those of the last cost; and the cost after each step.
    """
    rows, rank = moments.rows, subspaces.ranks[0]
    subspaces, energies, cost = moments.improve(subspaces)
    total = max(rows.weighted_sum(rows.norms), 1e-300)
    history: list[float] = []
    gains = [torch.inf]
    gaps = torch.zeros(len(rows), len(subspaces), dtype=torch.uint8, device=rows.device)
    contenders: Tensor | None = None  # of the rows, once all subspaces were looked at
    looked = 0  # halves of the rows for which they were
    following = True  # whether moves are judged by what the subspaces make of them
    while len(history) < max_iter:
        before, acting = moments.labels, halves == bool(len(history) % 2)
        leverage = moments.leverage(energies[:, :rank]) if following else Leverage.none(subspaces)
        dtype = rows.search_dtype(cost / total) if coarse else rows.dtype
        if contenders is None:
            which = acting.nonzero().squeeze(1)
            look, gaps[which] = look_at_all(rows, subspaces, before, leverage, dtype, which)
            looked += 1
            if looked == 2:
                contenders = _contenders(rows, before, gaps)
        else:
            look = look_at_contested(rows, subspaces, before, leverage, contenders & acting.unsqueeze(1), dtype)
        filled = fill_spare_clusters(rows, subspaces, look.labels)
        moved = moments.move(filled)
        improved, new_energies, new_cost = moments.improve(subspaces, times=2)
        if moved and new_cost >= cost:
            moments.move(before)
            if not following:  # the looks are not exact enough to see what is left to gain
                break
            contenders, looked, following = None, 0, False
            continue
        subspaces, energies, cost = improved, new_energies, new_cost
        history.append(cost)
        on_step(len(history), cost)
        gains.append(rows.weighted_sum(look.gains) / max(cost, 1e-300))
        if filled is not look.labels:  # to these rows the old bases mean nothing, nor did they contend
            contenders, looked = None, 0
        elif gains[-2] + gains[-1] <= tol:
            break
    return subspaces, history


def describe(rows: Rows, labels: Tensor, subspaces: Subspaces, spectra: Tensor, history: list[float]) -> Fit:
    """The fit that `labels` and `subspaces` make, with its exact cost appended to the history."""
    coefficients, residuals = project_rows(rows, labels, subspaces)
    inertia = rows.weighted_sum(residuals)
    return Fit(labels, subspaces, spectra, coefficients, residuals, inertia, [*history, inertia])


def _contenders(rows: Rows, labels: Tensor, gaps: Tensor) -> Tensor:
    """(n, k) which subspaces to look at until all are looked at again: a row's own, and those close to being its best.

    How close is set by the share of pairs that this leaves. Rows with nothing but their own have none.
    """
    counts = rows.team.sum(torch.bincount(gaps.flatten().int(), minlength=GAP_LEVELS + 1))
    counts[0] -= rows.total  # the best ones
    within = counts.cumsum(0) <= _CONTESTED_SHARE * counts.sum()
    contenders = gaps < within.sum()
    contenders.scatter_(1, labels.unsqueeze(1), True)
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
