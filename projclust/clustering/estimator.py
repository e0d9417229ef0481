"""`ProjectiveClustering`: the estimator, with scikit-learn's habits."""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from projclust.errors import ProjclustError

from .moments import fit_subspaces
from .processes import Team
from .ranks import Ranks, adapt_ranks
from .robust import Loss, fit_robustly, without_far_rows
from .rows import Rows, exact_products
from .seeding import TOGETHER, Init, first_labels, left_by_one_direction, random_partition, scout
from .solver import alternate, describe
from .subspaces import Subspaces, assign_rows, project_rows

# Every start settles its large structure at these low ranks, on a sample of the rows, and is judged by its cost there;
# the best one goes on to all rows and to full rank.
_SCOUTING_RANKS = (1, 4, 16)
_SAMPLE_ROWS = 8192
_SAMPLE_ROWS_PER_CLUSTER = 256

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
        ranks: "equal", or "adaptive": unequal ranks that take no more parameters than `rank` for all. Rows then choose
            by their distance and by what their coefficients cost, so labels need not be the nearest subspaces'.
        loss: what is summed of the rows' distances r: "l2" (r^2); or "l1" (r) or "huber", which far rows do not sway.
        init: first labels, from "spherical" k-means, "residual" seeding, or a "random" equal split.
        restarts: starts to try; each runs a few cheap steps on a sample of the rows, and the best is run to the end.
        max_iter: most steps of a run.
        tol: stop when moving rows, of which each gets its turn, lowers the cost by no more than this fraction of it.
        seed: of all random choices.
        device: where to compute; default: where the matrix is. A matrix for which it has no room is streamed to it.
        process_group: of torch.distributed, to share the rows among its processes. All call `fit` with the same matrix
            (a memory map costs them nothing) and get the same result.

    Attributes, after `fit` (tensors on the computing device):
        labels_: (n,) int64, the cluster of each row.
        components_: (k, j, d) orthonormal basis of each subspace, strongest direction first; zero beyond its own rank.
        ranks_: dimension of each subspace.
        means_: (k, d), or None without `affine`.
        coefficients_: (n, j), coordinates of each row in its cluster's basis.
        inertia_: weighted sum of the rows' losses; of squared residuals for "l2".
        residuals_: (n,) squared residual of each row.
        spectra_: (k, d) float64 eigenvalues of each cluster's scatter; the error at any other rank can be read off.
        cost_history_: cost after each step; the last entry is after the exact finish.
        n_iter_: number of entries of `cost_history_`.
    """

    labels_: Tensor
    components_: Tensor
    means_: Tensor | None
    ranks_: list[int]
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
        ranks: Ranks | str = Ranks.EQUAL,
        loss: Loss | str = Loss.L2,
        init: Init | str = Init.SPHERICAL,
        restarts: int = 16,
        max_iter: int = 100,
        tol: float = 1e-3,
        seed: int = 0,
        device: torch.device | str | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.rank = rank
        self.affine = affine
        self.method = method
        self.ranks = ranks
        self.loss = loss
        self.init = init
        self.restarts = restarts
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.device = device
        self.process_group = process_group

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
        method, init, loss, ranks = self._validated_options()
        progress = progress or _silent
        table = as_table(X)
        n, d = table.shape
        if self.rank >= d:
            raise ProjclustError(f"rank j={self.rank} must be less than the {d} columns of the matrix")
        if self.n_clusters > n:
            raise ProjclustError(f"k={self.n_clusters} subspaces need at least as many rows, but the matrix has {n}")
        weights = as_weights(sample_weight, n, table.device)

        device = table.device if self.device is None else torch.device(self.device)
        with exact_products(device):
            self._fit(table, weights, device, method, init, loss, ranks, progress)
        return self

    def _fit(
        self,
        table: Tensor,
        weights: Tensor | None,
        device: torch.device,
        method: Method,
        init: Init,
        loss: Loss,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        everything = Rows.of(table, weights, device, Team.of(self.process_group))
        rows = everything if loss is Loss.L2 else without_far_rows(everything)
        generator = torch.Generator().manual_seed(self.seed)
        steps = 0

        def on_step(step: int, cost: float) -> None:
            nonlocal steps
            steps += 1
            progress(self.restarts, steps, cost)

        if method is Method.PROJECTIVE and self.n_clusters > 1:
            start = self._best_start(rows, init, generator, progress)
            moments, settled = alternate(
                rows, start, self.rank, self.affine, self.max_iter, self.tol, generator, on_step
            )
            fit = adapt_ranks(moments, settled, start, self.tol, on_step) if ranks is Ranks.ADAPTIVE else None
            del moments  # the coefficients need its memory
            if fit is None or fit.inertia >= settled.cost:
                fit = describe(rows, settled.labels, settled.subspaces, settled.spectra, settled.history)
        else:
            labels = random_partition(rows, self.n_clusters, generator)
            subspaces, spectra = fit_subspaces(rows, labels, self.n_clusters, self.rank, self.affine)
            fit = describe(rows, labels, subspaces, spectra, [])
        if loss is not Loss.L2:
            fit = fit_robustly(everything, fit, loss, self.affine, self.max_iter, self.tol, on_step)
        self.labels_ = rows.gather(fit.labels)
        self.components_ = fit.subspaces.bases
        self.means_ = fit.subspaces.means
        self.ranks_ = fit.subspaces.ranks
        self.spectra_ = fit.spectra
        self.coefficients_ = rows.gather(fit.coefficients)
        self.residuals_ = rows.gather(fit.residuals)
        self.inertia_ = fit.inertia
        self.cost_history_ = fit.cost_history
        self.n_iter_ = len(fit.cost_history)

    def _best_start(self, rows: Rows, init: Init, generator: torch.Generator, progress: Progress) -> Tensor:
        """(k, r, d) low-rank bases of the start that is best on a sample of the rows."""
        k, ranks = self.n_clusters, [rank for rank in _SCOUTING_RANKS if rank <= self.rank]
        # Every process has the same sample, and starts of its own.
        groups = torch.randint(2**62, (self.restarts,), generator=generator).split(TOGETHER)
        sample = rows.whole.sample(max(_SAMPLE_ROWS, k * _SAMPLE_ROWS_PER_CLUSTER), generator)
        left = left_by_one_direction(sample)
        sample = replace(sample, table=sample.table.to(sample.search_dtype(left)))
        seeds = [seed for group in groups[rows.team.share(len(groups))] for seed in group.tolist()]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        labels = first_labels(init, sample, k, ranks[-1], generators, left)
        best, costs = scout(sample, labels, k, ranks, generators, left, rows.team)
        for restart, cost in enumerate(costs.tolist(), 1):
            progress(restart, 0, cost)
        return best

    def _validated_options(self) -> tuple[Method, Init, Loss, Ranks]:
        try:
            method, init, loss, ranks = Method(self.method), Init(self.init), Loss(self.loss), Ranks(self.ranks)
        except ValueError as error:
            raise ProjclustError(f"unknown option: {error}") from None
        for name in ("n_clusters", "rank", "restarts", "max_iter"):
            if getattr(self, name) < 1:
                raise ProjclustError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.tol >= 0:
            raise ProjclustError(f"tol must not be negative, but is {self.tol}")
        if method is Method.SVD and self.n_clusters != 1:
            raise ProjclustError(f"method svd is one subspace: k must be 1, not {self.n_clusters}")
        check_combination(method, self.n_clusters, ranks, loss)
        return method, init, loss, ranks

    def fit_predict(self, X: Any, sample_weight: Any = None) -> Tensor:
        """Fit, and return `labels_`."""
        return self.fit(X, sample_weight).labels_

    def predict(self, X: Any) -> Tensor:
        """(n,) the nearest of the fitted subspaces for each row of `X`."""
        table = Rows.of(self._compatible(X))
        return assign_rows(table, self._subspaces()).labels

    def transform(self, X: Any, labels: Tensor | None = None) -> Tensor:
        """(n, j) coordinates of each row in the basis of its cluster: `labels`, or else the nearest."""
        table = self._compatible(X)
        labels = self.predict(table) if labels is None else labels
        return project_rows(Rows.of(table), labels, self._subspaces())[0]

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
        return Subspaces(self.components_, self.means_, self.ranks_)

    def _compatible(self, X: Any) -> Tensor:
        subspaces = self._subspaces()
        table = as_table(X).to(subspaces.bases.device)
        if table.shape[1] != subspaces.bases.shape[2]:
            raise ProjclustError(
                f"the matrix has {table.shape[1]} columns, but the subspaces were fitted to {subspaces.bases.shape[2]}"
            )
        return table.to(subspaces.bases.dtype)


def check_combination(method: Method, n_clusters: int, ranks: Ranks, loss: Loss) -> None:
    """Refuse options that exclude each other.

    Raises:
        ProjclustError: naming them.
    """
    if method is Method.RANDOM and loss is not Loss.L2:
        raise ProjclustError("method random keeps its labels: its loss must be l2")
    if ranks is Ranks.ADAPTIVE and (method is not Method.PROJECTIVE or n_clusters == 1):
        raise ProjclustError("adaptive ranks are of several subspaces: use method projective with k of 2 or more")
    if ranks is Ranks.ADAPTIVE and loss is not Loss.L2:
        raise ProjclustError("adaptive ranks are allotted by squared errors: use loss l2")


def _silent(restart: int, step: int, cost: float) -> None:
    pass


def as_table(X: Any) -> Tensor:
    """A matrix as a float tensor, not copied where it is one.

    Raises:
        ProjclustError: it has NaN or infinite entries, or is no matrix.
    """
    table = torch.as_tensor(X).detach()
    if table.dim() != 2:
        raise ProjclustError(f"the matrix must have two dimensions, not {table.dim()}")
    if not table.is_floating_point():
        table = table.double()
    # Block by block, by extremes: isfinite makes temporaries, of the whole three tables' worth.
    for start in range(0, len(table), 4096):
        block = table[start : start + 4096]
        if block.numel() and not torch.isfinite(torch.stack(torch.aminmax(block))).all():
            row = start + int((~torch.isfinite(block).all(1)).nonzero()[0])
            raise ProjclustError(f"the matrix has NaN or infinite entries, the first in row {row}")
    return table


def as_weights(sample_weight: Any, n: int, device: torch.device) -> Tensor | None:
    """(n,) float64 row weights, or None.

    Raises:
        ProjclustError: they are negative, no numbers, all zero or of another shape.
    """
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
