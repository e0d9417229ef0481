"""Unequal ranks within one parameter budget, which the paper expects to be better (section 3) and does not try.

A direction of a cluster with n_c rows costs n_c + d parameters and saves the energy it captures. So directions are
bought by energy per parameter until the budget of equal ranks is spent, and a row chooses a subspace by its distance
and by the price of the coefficients that it would store there.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from projclust.clustering.scatter import ClusterScatter, captured_energy, fit_subspaces
from projclust.clustering.solver import Clustering, OnStep, Solution, evaluate
from projclust.clustering.subspaces import Subspaces, assign_rows

_MOST_STEPS = 20


def adapt_ranks(scatter: ClusterScatter, equal: Solution, start: Tensor, tol: float, on_step: OnStep) -> Clustering:
    """Continue from a solution of equal ranks to one of unequal ranks with no more parameters.

    Rows that need few directions end up in all subspaces of equal rank, and then no subspace can do with few. So the
    search begins twice: at the labels of the equal solution, whose scatter this is, and at those of the low-rank bases
    `start` (k, r, d) from which it came. Steps that lower the cost of the equal solution continue its history.
    """
    rows, rank, history = scatter.rows, equal.subspaces.ranks[0], list(equal.history)

    def on_cost(cost: float) -> None:
        # The first steps may cost more than the equal solution that they leave, which took many steps to converge.
        if not history or cost < history[-1]:
            history.append(cost)
            on_step(len(history), cost)

    found: list[Solution] = []
    for labels in (scatter.labels, assign_rows(rows, Subspaces.of(start)).labels):
        scatter.update(labels)
        found.append(_alternate(scatter, rank, tol, on_cost))
    best = min(found, key=lambda solution: solution.cost)
    ranks = best.subspaces.ranks
    subspaces = replace(best.subspaces, bases=best.subspaces.bases[:, : max(ranks)].clone())
    for cluster, own in enumerate(ranks):
        subspaces.bases[cluster, own:] = 0
    # The labels stay: a row that moved to another rank would change the number of parameters.
    return evaluate(rows, best.labels, subspaces, best.spectra, history)


def _alternate(scatter: ClusterScatter, rank: int, tol: float, on_cost: Callable[[float], None]) -> Solution:
    """Alternate between ranks and labels, from the labels of `scatter` on, in the parameters that `rank` takes."""
    rows, k, d = scatter.rows, scatter.n_clusters, scatter.rows.dim
    labels, affine, budget = scatter.labels, scatter.sums is not None, rank * (rows.total + k * d)
    subspaces, _ = fit_subspaces(rows, labels, k, min(2 * rank, d - 1), affine)
    last, kept = torch.inf, [rank] * k
    for _ in range(_MOST_STEPS):
        improved, energies, cost = scatter.iterate(subspaces)
        ranks, price = _allocate(energies, rows.count(scatter.labels, k) + d, budget)
        cost += captured_energy(energies, subspaces.ranks) - captured_energy(energies, ranks)
        if cost >= (1 - tol) * last:
            break
        last, labels, kept = cost, scatter.labels, ranks
        on_cost(cost)
        subspaces = replace(improved, ranks=ranks)
        penalties = price * torch.tensor(ranks, dtype=rows.dtype, device=rows.device)
        scatter.update(assign_rows(rows, subspaces, penalties).labels)

    subspaces, spectra = fit_subspaces(rows, labels, k, d - 1, affine)
    ranks, _ = _allocate(spectra[:, : d - 1], rows.count(labels, k) + d, budget)
    # A budget is rarely spent to the last parameter, so that exact energies need not buy the better ranks.
    ranks = max(ranks, kept, key=lambda own: captured_energy(spectra, own))
    cost = float(spectra.sum()) - captured_energy(spectra, ranks)
    return Solution(labels, replace(subspaces, ranks=ranks), spectra, cost, history=[])  # d - 1 directions, some unused


def _allocate(energies: Tensor, costs: Tensor, budget: int) -> tuple[list[int], float]:
    """Ranks of at least 1 that capture the most energy within a budget of parameters.

    Directions capture `energies` (k, j), strongest first, and cost so many parameters (k,) each. The price, which comes
    with the ranks, is the energy per parameter of the last direction bought.
    """
    costs = costs.double().unsqueeze(1).expand_as(energies)
    # Directions are bought in order, even where iteration has not yet sorted them.
    worth = energies.cummin(1).values / costs
    worth[:, 0] = torch.inf
    order = worth.flatten().argsort(descending=True, stable=True)
    affordable = costs.flatten()[order].cumsum(0) <= budget
    bought = order[affordable]
    ranks = torch.bincount(bought // energies.shape[1], minlength=len(energies)).tolist()
    price = float(worth.flatten()[bought[-1]])
    return ranks, price if price < torch.inf else 0.0
