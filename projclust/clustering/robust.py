"""Errors that a few far rows do not dominate, by iteratively reweighted least squares.

Source: the robust companion of the paper (Tukan, Maalouf, Weksler and Feldman, "No Fine-Tuning, No Cry: Robust SVD for
Compressing Deep Networks", 2021). A loss rho of the distance r is met by weighted least squares with the weights
``rho'(r) / 2r`` of the step before; each such step lowers the sum of the losses.
"""

from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from .moments import Moments, fit_subspaces
from .rows import Rows
from .solver import Fit, OnStep, describe
from .subspaces import assign_rows


class Loss(str, Enum):
    """What is summed over the rows, of the distance r of each to its subspace."""

    L2 = "l2"  # r^2
    L1 = "l1"  # r
    HUBER = "huber"  # r^2 up to the median distance m of the l2 fit, 2mr - m^2 beyond


# l1 has infinite weights at r = 0; below this fraction of the median distance they stay what they are there.
_SMALLEST = 1e-3


def without_far_rows(rows: Rows) -> Rows:
    """The rows for a fit to start from: none counts for more than one of median length.

    Least squares would give far rows subspaces of their own, and reweighting does not take these back.
    """
    lengths = rows.gather(rows.norms)
    if not lengths.any():
        return rows
    typical = lengths[lengths > 0].median()
    factors = (typical / rows.norms.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1)
    return rows.reweighted(factors if rows.weights is None else factors * rows.weights)


def fit_robustly(rows: Rows, start: Fit, loss: Loss, affine: bool, max_iter: int, tol: float, on_step: OnStep) -> Fit:
    """Go on from a fit by squared distances to one by `loss`, of the same rank.

    Returns:
        a fit whose `inertia` and `cost_history` are weighted sums of the loss.
    """
    k, rank, _ = start.subspaces.bases.shape
    residuals = rows.gather(start.residuals)
    if residuals.any() and not residuals.median():  # rows that are met exactly say nothing of how far others are
        residuals = residuals[residuals > 0]
    median = float(residuals.median().sqrt())
    subspaces, labels, distances = start.subspaces, start.labels, start.residuals
    history: list[float] = []
    while len(history) < max_iter:
        weights = _weights(rows, loss, distances, median)
        moments = Moments(rows.reweighted(weights), labels, k, affine, keep_grams=False)
        subspaces, _, _ = moments.improve(subspaces)
        look = assign_rows(rows, subspaces)
        labels, distances = look.labels, look.distances
        history.append(rows.weighted_sum(_losses(loss, distances, median)))
        on_step(len(history), history[-1])
        if len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]:
            break
    reweighted = rows.reweighted(_weights(rows, loss, distances, median))
    subspaces, spectra = fit_subspaces(reweighted, labels, k, rank, affine)
    fit = describe(rows, assign_rows(rows, subspaces).labels, subspaces, spectra, [])
    inertia = rows.weighted_sum(_losses(loss, fit.residuals, median))
    return replace(fit, inertia=inertia, cost_history=[*history, inertia])


def _losses(loss: Loss, distances: Tensor, median: float) -> Tensor:
    """(n,) the loss of squared distances (n,)."""
    lengths = distances.double().sqrt()
    match loss:
        case Loss.L2:
            return lengths.square()
        case Loss.L1:
            return lengths
        case Loss.HUBER:
            return torch.where(lengths <= median, lengths.square(), 2 * median * lengths - median**2)


def _weights(rows: Rows, loss: Loss, distances: Tensor, median: float) -> Tensor:
    """(n,) the rows' weights times those of least squares that meets the loss, up to a constant factor."""
    lengths = distances.sqrt()
    match loss:
        case Loss.L2:
            factors = torch.ones_like(lengths)
        case Loss.L1:
            factors = median / lengths.clamp(min=max(_SMALLEST * median, torch.finfo(rows.dtype).tiny))
        case Loss.HUBER:
            factors = (median / lengths.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1)
    return factors if rows.weights is None else factors * rows.weights
