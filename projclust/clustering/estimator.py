"""`ProjectiveClustering`: the estimator, with scikit-learn's habits."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from projclust.errors import ProjclustError

from .seeding import Init, first_labels, random_partition
from .solver import Fit, alternate, climb_ranks, describe, total_cost
from .subspaces import Subspaces, assign_rows, fit_subspaces, project_rows, squared_norms

# Every start settles its large structure at these low ranks and is then judged by one step at full rank; the best one
# climbs on, doubling the rank, and runs to the end.
_SCOUTING_RANKS = (1, 4, 16)
_CLIMBING_RANKS = tuple(2**power for power in range(5, 16))

# Called when a start was judged, with its number (from 1), and after every full step with the number of starts and the
# step (from 1); both times with the cost.
Progress = Callable[[int, int, float], None]


class Method(str, Enum):
    """What is fitted: projective clustering, or a baseline behind the same interface."""

    PROJECTIVE = "projective"
    SVD = "svd"  # one subspace: truncated singular value decomposition
    RANDOM = "random"  # k random equal groups, one subspace each: what clustering itself brings is the difference


class ProjectiveClustering:
    """Find k low-dimensional subspaces that together pass close to all rows of a matrix.

    Minimises ``sum_i w_i min_c dist(a_i, S_c)^2`` over k subspaces of dimension `rank` (Maalouf et al., ICLR 2021).
    The cost never rises from one step to the next, and the same seed on the same machine gives the same result.

    Args:
        n_clusters: k, the number of subspaces; 1 with method "svd".
        rank: j, their dimension; less than the number of columns.
        affine: subspaces need not pass through the origin; each has a mean.
        method: "projective", or the baselines "svd" and "random".
        init: first labels, from "spherical" k-means, "residual" seeding, or a "random" equal split.
        restarts: starts to try; each runs a few cheap steps, and the best is run to the end.
        max_iter: most steps of a run.
        tol: stop when a step lowers the cost by less than this fraction of it.
        seed: of all random choices.
        device: where to compute; default: where the matrix is.

    Attributes, after `fit` (tensors on the computing device):
        labels_: (n,) int64, the cluster of each row.
        components_: (k, j, d) orthonormal basis of each subspace, strongest direction first.
        means_: (k, d), or None without `affine`.
        coefficients_: (n, j), coordinates of each row in its cluster's basis.
        inertia_: weighted sum of squared residuals.
        residuals_: (n,) squared residual of each row.
        spectra_: (k, d) float64 eigenvalues of each cluster's scatter; the error at any other rank can be read off.
        cost_history_: cost after each step; the last entry is after the exact finish.
        n_iter_: number of entries of `cost_history_`.
    """

    labels_: Tensor
    components_: Tensor
    means_: Tensor | None
    coefficients_: Tensor
    inertia_: float
    residuals_: Tensor
    spectra_: Tensor
    cost_history_: list[float]
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 5,
        rank: int = 40,
        *,
        affine: bool = False,
        method: Method | str = Method.PROJECTIVE,
        init: Init | str = Init.SPHERICAL,
        restarts: int = 8,
        max_iter: int = 100,
        tol: float = 1e-4,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.rank = rank
        self.affine = affine
        self.method = method
        self.init = init
        self.restarts = restarts
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.device = device

    def __repr__(self) -> str:
        return (
            f"ProjectiveClustering(n_clusters={self.n_clusters}, rank={self.rank}, affine={self.affine}, "
            f"method={str(Method(self.method).value)!r}, seed={self.seed})"
        )

    def fit(self, X: Any, sample_weight: Any = None, progress: Progress | None = None) -> "ProjectiveClustering":
        """Fit to the rows of `X`.

        Args:
            X: (n, d) tensor or array, float16, bfloat16, float32 or float64; it is not copied to a wider type.
            sample_weight: (n,) non-negative row weights; default: all one.
            progress: called with the restart, the step (0: a start was judged) and the cost.

        Raises:
            ProjclustError: NaN or infinity in `X`, j >= d, k > n, negative or all-zero weights, an unknown option.
        """
        method, init = self._validated_options()
        table = _as_table(X, self.device)
        n, d = table.shape
        if self.rank >= d:
            raise ProjclustError(f"rank j={self.rank} must be less than the {d} columns of the matrix")
        if self.n_clusters > n:
            raise ProjclustError(f"k={self.n_clusters} subspaces need at least as many rows, but the matrix has {n}")
        weights = _as_weights(sample_weight, n, table.device)

        generator = torch.Generator().manual_seed(self.seed)
        if method is Method.PROJECTIVE:
            fit = self._fit_projective(table, weights, init, generator, progress or _silent)
        else:
            labels = random_partition(n, self.n_clusters, generator).to(table.device)
            subspaces = fit_subspaces(table, weights, labels, self.n_clusters, self.rank, self.affine, exact=True)
            fit = describe(table, weights, labels, subspaces, [])
        self.labels_ = fit.labels
        self.components_ = fit.subspaces.bases
        self.means_ = fit.subspaces.means
        self.spectra_ = fit.subspaces.spectra
        self.coefficients_ = fit.coefficients
        self.residuals_ = fit.residuals
        self.inertia_ = fit.inertia
        self.cost_history_ = fit.cost_history
        self.n_iter_ = len(fit.cost_history)
        return self

    def _fit_projective(
        self,
        table: Tensor,
        weights: Tensor | None,
        init: Init,
        generator: torch.Generator,
        progress: Progress,
    ) -> Fit:
        norms = squared_norms(table)
        k, rank = self.n_clusters, self.rank
        best = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        if k > 1:
            scouting, climbing = ([r for r in ranks if r < rank] for ranks in (_SCOUTING_RANKS, _CLIMBING_RANKS))
            lowest = torch.inf
            for restart in range(1, self.restarts + 1):
                labels = first_labels(init, table, norms, weights, k, rank, generator)
                labels = climb_ranks(table, norms, weights, labels, k, scouting, self.affine)
                subspaces = fit_subspaces(table, weights, labels, k, rank, self.affine)
                cost = total_cost(assign_rows(table, norms, subspaces)[1], weights)
                progress(restart, 0, cost)
                if cost < lowest:
                    lowest, best = cost, labels
            best = climb_ranks(table, norms, weights, best, k, climbing, self.affine)
        return alternate(
            table,
            norms,
            weights,
            best,
            k,
            rank,
            self.affine,
            max_iter=self.max_iter,
            tol=self.tol,
            on_step=lambda step, cost: progress(self.restarts, step, cost),
        )

    def _validated_options(self) -> tuple[Method, Init]:
        try:
            method, init = Method(self.method), Init(self.init)
        except ValueError as error:
            raise ProjclustError(f"unknown option: {error}") from None
        for name in ("n_clusters", "rank", "restarts", "max_iter"):
            if getattr(self, name) < 1:
                raise ProjclustError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.tol >= 0:
            raise ProjclustError(f"tol must not be negative, but is {self.tol}")
        if method is Method.SVD and self.n_clusters != 1:
            raise ProjclustError(f"method svd is one subspace: k must be 1, not {self.n_clusters}")
        return method, init

    def fit_predict(self, X: Any, sample_weight: Any = None) -> Tensor:
        """Fit, and return `labels_`."""
        return self.fit(X, sample_weight).labels_

    def predict(self, X: Any) -> Tensor:
        """(n,) the nearest of the fitted subspaces for each row of `X`."""
        table = self._compatible(X)
        return assign_rows(table, squared_norms(table), self._subspaces())[0]

    def transform(self, X: Any, labels: Tensor | None = None) -> Tensor:
        """(n, j) coordinates of each row in the basis of its cluster: `labels`, or else the nearest."""
        table = self._compatible(X)
        labels = self.predict(table) if labels is None else labels
        return project_rows(table, labels, self._subspaces())[0]

    def inverse_transform(self, coefficients: Tensor, labels: Tensor) -> Tensor:
        """(n, d) rows rebuilt from coordinates and cluster labels."""
        rows = torch.empty(
            len(coefficients), self.components_.shape[2], dtype=coefficients.dtype, device=coefficients.device
        )
        for cluster in range(self.n_clusters):
            members = (labels == cluster).nonzero().squeeze(1)
            rows[members] = coefficients[members] @ self.components_[cluster].to(coefficients.dtype)
            if self.means_ is not None:
                rows[members] += self.means_[cluster].to(coefficients.dtype)
        return rows

    def _subspaces(self) -> Subspaces:
        if not hasattr(self, "components_"):
            raise ProjclustError("this ProjectiveClustering is not fitted yet: call fit first")
        return Subspaces(self.components_, self.means_, self.spectra_)

    def _compatible(self, X: Any) -> Tensor:
        subspaces = self._subspaces()
        table = _as_table(X, subspaces.bases.device)
        if table.shape[1] != subspaces.bases.shape[2]:
            raise ProjclustError(
                f"the matrix has {table.shape[1]} columns, but the subspaces were fitted to {subspaces.bases.shape[2]}"
            )
        return table.to(subspaces.bases.dtype)


def _silent(restart: int, step: int, cost: float) -> None:
    pass


def _as_table(X: Any, device: torch.device | str | None) -> Tensor:
    table = torch.as_tensor(X).detach()
    if table.dim() != 2:
        raise ProjclustError(f"the matrix must have two dimensions, not {table.dim()}")
    if not table.is_floating_point():
        table = table.double()
    table = table.to(device) if device is not None else table
    # Block by block: isfinite of the whole would make three tables' worth of temporaries.
    for start in range(0, len(table), 4096):
        finite = torch.isfinite(table[start : start + 4096]).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise ProjclustError(f"the matrix has NaN or infinite entries, the first in row {row}")
    return table


def _as_weights(sample_weight: Any, n: int, device: torch.device) -> Tensor | None:
    if sample_weight is None:
        return None
    weights = torch.as_tensor(sample_weight, dtype=torch.float64, device=device)
    if weights.shape != (n,):
        raise ProjclustError(f"row weights must have shape ({n},), not {tuple(weights.shape)}")
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ProjclustError("row weights must be finite and not negative")
    if not 0 < weights.sum() < torch.inf:
        raise ProjclustError("row weights must have a positive, finite sum: there is nothing to fit")
    return weights
