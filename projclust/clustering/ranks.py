"""Unequal ranks under one parameter budget: the paper calls them better (section 3) and leaves them untried.

A direction of a cluster with n_c rows costs n_c + d parameters and saves the energy it captures. So directions are
bought by energy per parameter until the budget of equal ranks is spent, and a row weighs, beside its distance to a
subspace, the price of the coefficients it would store there.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from .moments import Moments, fit_subspaces
from .rows import Rows
from .solver import Fit, OnStep, Settled, describe
from .subspaces import Subspaces, assign_rows

_MOST_STEPS = 20


class Ranks(str, Enum):
    """Whether all subspaces have the same rank."""

    EQUAL = "equal"
    ADAPTIVE = "adaptive"  # as many parameters, spent where they save most


def adapt_ranks(moments: Moments, equal: Settled, start: Tensor, tol: float, on_step: OnStep) -> Fit:
    """Go on from a fit of equal ranks to one of unequal ranks with no more parameters.

    Rows that few directions serve end up in all the subspaces of an equal fit, and then no subspace can do with few.
    So the search begins twice, at the labels of the equal fit and at those that the fit itself started from.

    Args:
        moments: of the equal fit.
        equal: the equal fit.
        start: (k, r, d) the low-rank bases that it started from.
        tol: stop when a step lowers the cost by no more than this fraction of it.
        on_step: told of every step that lowers the cost further, which are numbered on.
    """
    rows, (k, rank, d) = moments.rows, equal.subspaces.bases.shape
    affine = equal.subspaces.means is not None
    budget = rank * (rows.total + k * d)
    history = list(equal.history)

    def on_cost(cost: float) -> None:
        # The first steps may cost more than the equal ranks they leave: these took many steps to settle.
        if not history or cost < history[-1]:
            history.append(cost)
            on_step(len(history), cost)

    found: tuple[float, Tensor, Subspaces, Tensor] | None = None
    for labels in (moments.labels, assign_rows(rows, Subspaces.of(start)).labels):
        moments.move(labels)
        other = _search(moments, rank, affine, budget, tol, on_cost)
        if found is None or other[0] < found[0]:
            found = other
    assert found is not None
    _, labels, subspaces, spectra = found
    ranks = subspaces.ranks
    subspaces = Subspaces(subspaces.bases[:, : max(ranks)].clone(), subspaces.means, ranks)
    for cluster, own in enumerate(ranks):
        subspaces.bases[cluster, own:] = 0
    # The labels stay: a row that moved to another rank would change the number of parameters.
    return describe(rows, labels, subspaces, spectra, history)


def _search(
    moments: Moments, rank: int, affine: bool, budget: int, tol: float, on_cost: Callable[[float], None]
) -> tuple[float, Tensor, Subspaces, Tensor]:
    """Alternate between ranks and labels, from the labels of `moments` on.

    Returns:
        the cost, the labels (n,), the subspaces, whose bases have more than their ranks, and the spectra (k, d).
    """
    rows, k, d = moments.rows, moments.n_clusters, moments.rows.dim
    labels = moments.labels
    subspaces, _ = fit_subspaces(rows, labels, k, min(2 * rank, d - 1), affine)
    last, kept = torch.inf, [rank] * k
    for _ in range(_MOST_STEPS):
        improved, energies, cost = moments.improve(subspaces)
        ranks, price = _allocate(energies, _sizes(rows, moments.labels, k), d, budget)
        cost += _captured(energies, subspaces.ranks) - _captured(energies, ranks)
        if cost >= (1 - tol) * last:
            break
        last, labels, kept = cost, moments.labels, ranks
        on_cost(cost)
        subspaces = replace(improved, ranks=ranks)
        penalties = price * torch.tensor(ranks, dtype=rows.dtype, device=rows.device)
        moments.move(assign_rows(rows, subspaces, penalties).labels)

    subspaces, spectra = fit_subspaces(rows, labels, k, d - 1, affine)
    ranks, _ = _allocate(spectra[:, : d - 1], _sizes(rows, labels, k), d, budget)
    # What whole directions leave of the budget differs: exact energies need not buy the better ranks.
    ranks = max(ranks, kept, key=lambda own: _captured(spectra, own))
    return float(spectra.sum()) - _captured(spectra, ranks), labels, replace(subspaces, ranks=ranks), spectra


def _allocate(energies: Tensor, sizes: Tensor, d: int, budget: int) -> tuple[list[int], float]:
    """Ranks that capture the most energy within a budget of parameters, each at least 1.

    Args:
        energies: (k, j) what each direction of each cluster captures, strongest first.
        sizes: (k,) rows of each cluster.
        d: columns.
        budget: parameters.

    Returns:
        the ranks, and the energy per parameter of the last direction bought.
    """
    costs = (sizes + d).double().unsqueeze(1).expand_as(energies)
    # Directions that iteration left out of order are bought in order all the same.
    worth = energies.cummin(1).values / costs
    worth[:, 0] = torch.inf
    order = worth.flatten().argsort(descending=True, stable=True)
    affordable = costs.flatten()[order].cumsum(0) <= budget
    bought = order[affordable]
    ranks = torch.bincount(bought // energies.shape[1], minlength=len(energies)).tolist()
    price = float(worth.flatten()[bought[-1]])
    return ranks, price if price < torch.inf else 0.0


def _captured(energies: Tensor, ranks: list[int]) -> float:
    return float(sum(energies[cluster, :rank].sum() for cluster, rank in enumerate(ranks)))


def _sizes(rows: Rows, labels: Tensor, n_clusters: int) -> Tensor:
    return rows.team.sum(torch.bincount(labels, minlength=n_clusters))
