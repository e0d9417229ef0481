"""Unequal ranks under one parameter budget: the paper calls them better (section 3) and leaves them untried.

A direction of a cluster with n_c rows costs n_c + d parameters and saves the energy it captures. So directions are
bought by energy per parameter until the budget of equal ranks is spent, and a row weighs, beside its distance to a
subspace, the price of the coefficients it would store there.
"""

from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from .moments import Moments, fit_subspaces
from .rows import Rows
from .solver import Fit, OnStep, describe, extended
from .subspaces import Subspaces, assign_rows

_MOST_STEPS = 20


class Ranks(str, Enum):
    """Whether all subspaces have the same rank."""

    EQUAL = "equal"
    ADAPTIVE = "adaptive"  # as many parameters, spent where they save most


def adapt_ranks(
    moments: Moments,
    subspaces: Subspaces,
    tol: float,
    generator: torch.Generator,
    on_step: OnStep,
    history: list[float],
) -> Fit:
    """Go on from a fit of equal ranks to one of unequal ranks with no more parameters.

    Args:
        moments: of the labels so far.
        subspaces: of the equal rank j.
        tol: stop when a step lowers the cost by no more than this fraction of it.
        generator: of directions beyond rank j.
        on_step: told of every step, which are numbered on.
        history: costs so far.
    """
    rows, (k, rank, d) = moments.rows, subspaces.bases.shape
    affine = subspaces.means is not None
    budget = rank * (rows.total + k * d)
    subspaces = extended(moments, subspaces, min(2 * rank, d - 1), generator)
    history, labels = list(history), moments.labels
    for _ in range(_MOST_STEPS):
        improved, energies, cost = moments.improve(subspaces)
        ranks, price = _allocate(energies, _sizes(rows, moments.labels, k), d, budget)
        cost += _captured(energies, subspaces.ranks) - _captured(energies, ranks)
        if cost >= history[-1]:  # whole directions cannot spend the budget to the last parameter
            break
        history.append(cost)
        on_step(len(history), cost)
        labels = moments.labels
        if history[-2] - cost <= tol * history[-2]:
            break
        subspaces = replace(improved, ranks=ranks)
        penalties = price * torch.tensor(ranks, dtype=rows.dtype, device=rows.device)
        moments.move(assign_rows(rows, subspaces, penalties).labels)

    subspaces, spectra = fit_subspaces(rows, labels, k, d - 1, affine)
    ranks, _ = _allocate(spectra[:, : d - 1], _sizes(rows, labels, k), d, budget)
    subspaces = Subspaces(subspaces.bases[:, : max(ranks)].clone(), subspaces.means, ranks)
    for cluster, own in enumerate(ranks):
        subspaces.bases[cluster, own:] = 0
    # The labels stay: a row that moved to another rank would change the number of parameters.
    return describe(rows, labels, subspaces, spectra, history)


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
