"""Robust losses, which a few far rows do not dominate, by iteratively reweighted least squares.

Source: the robust companion of the paper (Tukan, Maalouf, Weksler and Feldman, "No Fine-Tuning, No Cry: Robust SVD for
Compressing Deep Networks", 2021). A loss rho of the distance r is minimised by weighted least squares with the weights
``rho'(r) / 2r``, where r is the distance after the step before. Each step lowers the sum of the losses.
"""

from dataclasses import replace

import torch
from torch import Tensor

from projclust.clustering.inputs import ClusteringOptions
from projclust.clustering.rows import Rows
from projclust.clustering.scatter import ClusterScatter, fit_subspaces
from projclust.clustering.solver import Clustering, OnStep, evaluate
from projclust.clustering.subspaces import Subspaces, assign_rows
from projclust.options import Loss

# The weights of l1 are infinite at r = 0: below this fraction of the median distance they grow no further.
_SMALLEST = 1e-3


def downweight_long_rows(rows: Rows) -> Rows:
    """The rows with weights such that none counts for more than a row of median length, for a first fit."""
    # Plain least squares would give far rows subspaces of their own, and reweighting would not take these back.
    lengths = rows.gather(rows.norms)
    if not lengths.any():
        return rows
    typical = lengths[lengths > 0].median()
    factors = (typical / rows.norms.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1)
    return rows.reweighted(rows.weighted(factors))


def fit_robustly(rows: Rows, start: Clustering, options: ClusteringOptions, on_step: OnStep) -> Clustering:
    """Continue from a fit by squared distances, of equal ranks, to one by the loss of the options."""
    (k, rank, _), loss, affine = start.bases.shape, options.loss, options.affine
    residuals = rows.gather(start.residuals)
    if residuals.any() and not residuals.median():  # exact rows say nothing of how far others are
        residuals = residuals[residuals > 0]
    median = float(residuals.median().sqrt())
    subspaces, labels, distances = Subspaces.of(start.bases, start.means), start.labels, start.residuals
    history: list[float] = []
    while len(history) < options.max_iter:
        weights = _weights(rows, loss, distances, median)
        scatter = ClusterScatter(rows.reweighted(weights), labels, k, affine, keep_grams=False)
        subspaces, _, _ = scatter.iterate(subspaces)
        labels, distances = assign_rows(rows, subspaces)
        history.append(rows.weighted_sum(_losses(loss, distances, median)))
        on_step(len(history), history[-1])
        if len(history) > 1 and history[-2] - history[-1] <= options.tol * history[-2]:
            break
    reweighted = rows.reweighted(_weights(rows, loss, distances, median))
    subspaces, spectra = fit_subspaces(reweighted, labels, k, rank, affine)
    fit = evaluate(rows, assign_rows(rows, subspaces).labels, subspaces, spectra, [])
    inertia = rows.weighted_sum(_losses(loss, fit.residuals, median))
    return replace(fit, inertia=inertia, cost_history=[*history, inertia])


def _losses(loss: Loss, distances: Tensor, median: float) -> Tensor:
    """(n,) the l1 or Huber losses of rows with these squared distances (n,)."""
    lengths = distances.double().sqrt()
    if loss is Loss.L1:
        return lengths
    return torch.where(lengths <= median, lengths.square(), 2 * median * lengths - median**2)


def _weights(rows: Rows, loss: Loss, distances: Tensor, median: float) -> Tensor:
    """(n,) the rows' weights times those with which least squares minimises the loss, up to a constant factor."""
    smallest = max(_SMALLEST * median if loss is Loss.L1 else 0, torch.finfo(rows.dtype).tiny)
    factors = median / distances.sqrt().clamp(min=smallest)
    return rows.weighted(factors if loss is Loss.L1 else factors.clamp(max=1))
