"""`fit_clustering`: projective clustering of a matrix as a function, with its options and its result."""

from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from projclust.clustering.inputs import ClusteringOptions, Progress, as_ordinary, as_table, as_weights
from projclust.clustering.ranks import adapt_ranks
from projclust.clustering.robust import downweight_long_rows, fit_robustly
from projclust.clustering.rows import Collective, Rows, exact_products
from projclust.clustering.scatter import fit_subspaces
from projclust.clustering.seeding import best_start, random_partition
from projclust.clustering.solver import Clustering, evaluate, fit_equal_ranks
from projclust.errors import ProjclustError
from projclust.options import Loss, Method, Ranks

__all__ = ["Clustering", "ClusteringOptions", "Progress", "fit_clustering"]


def fit_clustering(
    X: Any,
    options: ClusteringOptions,
    sample_weight: Any = None,
    *,
    device: torch.device | str | None = None,
    process_group: "dist.ProcessGroup | None" = None,
    progress: Progress | None = None,
) -> Clustering:
    """Find k low-dimensional subspaces that together pass close to all rows of a matrix.

    Minimises ``sum_i w_i min_c dist(a_i, S_c)^2``, or the sum of another loss of the distances, over k subspaces of
    dimension j. Source: Maalouf, Lang, Rus and Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021. The
    cost never rises from one step to the next, and the same seed on the same machine gives the same bytes.

    Args:
        X: (n, d) tensor or array in float16, bfloat16, float32 or float64. It is not copied to a wider type.
        options: what to fit and how.
        sample_weight: (n,) non-negative row weights; default: all one.
        device: where to compute; default: where the matrix is. A matrix that has no room there is streamed to it.
        process_group: a group of torch.distributed whose processes share the rows. All of them call this function with
            the same matrix, which may be a memory map, and get the same result.
        progress: called after every start and every step; see `Progress`.

    Raises:
        ProjclustError: NaN or infinity in `X`, j >= d, k > n, or negative or all-zero weights.

    Example::

        fitted = fit_clustering(torch.randn(1000, 64), ClusteringOptions(n_clusters=4, rank=8))
        fitted.labels.shape, fitted.bases.shape  # (1000,), (4, 8, 64)
    """
    table, exponent = as_ordinary(as_table(X))
    n, d = table.shape
    if options.rank >= d:
        raise ProjclustError(
            f"rank j={options.rank} must be less than the {d} columns of the matrix (n_features = {d})"
        )
    if options.n_clusters > n:
        raise ProjclustError(
            f"k={options.n_clusters} subspaces need at least as many rows, but the matrix has {n} (n_samples = {n})"
        )
    weights = as_weights(sample_weight, n, table.device)
    device = table.device if device is None else torch.device(device)
    with exact_products(device):
        rows = Rows.of(table, weights, device, Collective.of(process_group))
        found = _fit_rows(rows, options, _scaled_back(options.loss, exponent, progress or (lambda *step: None)))
        labels, coefficients, residuals = map(rows.gather, (found.labels, found.coefficients, found.residuals))
        found = replace(found, labels=labels, coefficients=coefficients, residuals=residuals)
        return found if exponent == 0 else _of_scale(found, options.loss, exponent)


def _of_scale(found: Clustering, loss: Loss, exponent: int) -> Clustering:
    """The clustering of a table that is the fitted one times a power of two."""
    length = 2.0**exponent
    cost = length if loss is Loss.L1 else length * length
    return replace(
        found,
        means=None if found.means is None else found.means * length,
        coefficients=found.coefficients * length,
        inertia=found.inertia * cost,
        residuals=found.residuals.double() * length * length,
        spectra=found.spectra * length * length,
        cost_history=[value * cost for value in found.cost_history],
    )


def _scaled_back(loss: Loss, exponent: int, progress: Progress) -> Progress:
    """Tell `progress` of the costs of the table itself."""
    factor = 2.0**exponent if loss is Loss.L1 else 2.0**exponent * 2.0**exponent
    return progress if exponent == 0 else lambda start, step, cost: progress(start, step, cost * factor)


def _fit_rows(rows: Rows, options: ClusteringOptions, progress: Progress) -> Clustering:
    """The clustering of this process's rows."""
    generator = torch.Generator().manual_seed(options.seed)
    steps = count(1)

    def on_step(step: int, cost: float) -> None:
        progress(options.restarts, next(steps), cost)

    robust = options.loss is not Loss.L2
    weighted = downweight_long_rows(rows) if robust else rows
    if options.method is Method.PROJECTIVE and options.n_clusters > 1:
        start = best_start(weighted, options, generator, progress)
        scatter, equal = fit_equal_ranks(weighted, start, options, generator, on_step)
        if options.ranks is Ranks.ADAPTIVE:
            found = adapt_ranks(scatter, equal, start, options.tol, on_step)
            if found.inertia < equal.cost:
                return found
        del scatter  # the coefficients need its memory
        found = evaluate(weighted, equal.labels, equal.subspaces, equal.spectra, equal.history)
    else:
        labels = random_partition(weighted, options.n_clusters, generator)
        subspaces, spectra = fit_subspaces(weighted, labels, options.n_clusters, options.rank, options.affine)
        found = evaluate(weighted, labels, subspaces, spectra, [])
    return fit_robustly(rows, found, options, on_step) if robust else found
