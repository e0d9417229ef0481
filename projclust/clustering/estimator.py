"""`ProjectiveClustering`: the scikit-learn estimator over `fit_clustering`."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import validate_data
from torch import Tensor

from projclust.clustering.fit import ClusteringOptions, Progress, fit_clustering
from projclust.clustering.inputs import as_table
from projclust.clustering.rows import Rows
from projclust.clustering.subspaces import Subspaces, assign_rows, project_rows
from projclust.errors import ProjclustError


class UnfittedError(ProjclustError, NotFittedError):
    """An estimator that was asked for results before `fit`."""


class ProjectiveClustering(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Find k low-dimensional subspaces that together pass close to all rows of a matrix.

    Minimises ``sum_i w_i min_c dist(a_i, S_c)^2`` over k subspaces of dimension j. Source: Maalouf, Lang, Rus and
    Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021. The same seed on the same machine gives the same
    bytes. Results are tensors on the computing device where `X` is a tensor, and numpy arrays where it is an array, a
    list or a pandas DataFrame. `fit_predict` and `fit_transform` are those of scikit-learn.

    What is fitted (n_clusters, rank, affine, method, ranks, loss, init) and how (restarts, max_iter, tol, seed) are the
    options of `projclust.clustering.inputs.ClusteringOptions`, which checks them when `fit` is called.

    Args:
        n_init: scikit-learn's name for `restarts`, over which it wins if given.
        random_state: scikit-learn's name for `seed`, over which it wins if given: an integer, or a
            ``numpy.random.RandomState`` from which every `fit` draws a seed.
        device: where to compute; default: where the matrix is. A matrix that has no room there is streamed to it.
        process_group: a group of torch.distributed whose processes share the rows; see `fit_clustering`.

    Attributes:
        labels_: (n,) int64, the cluster of each row.
        components_: (k, j, d) the orthonormal basis of each subspace, strongest direction first; zero beyond its rank.
        ranks_: the dimension of each subspace.
        means_: (k, d) a point of each subspace, or None without `affine`.
        coefficients_: (n, j) the coordinates of each row in its cluster's basis.
        inertia_: the weighted sum of the rows' losses; with the loss "l2", of their squared residuals.
        residuals_: (n,) the squared residual of each row.
        spectra_: (k, d) float64 eigenvalues of each cluster's scatter, which give the error at any other rank.
        cost_history_: the cost after each step; the last entry is after the exact fit at the end.
        n_iter_: the number of entries of `cost_history_`.
        n_features_in_: the number of columns d.
        feature_names_in_: (d,) the names of the columns, where `X` was a DataFrame with names.

    Example::

        fitted = ProjectiveClustering(n_clusters=4, rank=8).fit(np.random.randn(1000, 64))
        rebuilt = fitted.inverse_transform(fitted.coefficients_, fitted.labels_)  # (1000, 64)
    """

    def __init__(
        self,
        n_clusters: int = 5,
        rank: int = 40,
        *,
        affine: bool = False,
        method: str = "projective",
        ranks: str = "equal",
        loss: str = "l2",
        init: str = "spherical",
        restarts: int = 16,
        n_init: int | None = None,
        max_iter: int = 100,
        tol: float = 1e-3,
        seed: int = 0,
        random_state: int | np.random.RandomState | None = None,
        device: torch.device | str | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        self.n_clusters, self.rank, self.affine = n_clusters, rank, affine
        self.method, self.ranks, self.loss, self.init = method, ranks, loss, init
        self.restarts, self.n_init = restarts, n_init
        self.max_iter, self.tol = max_iter, tol
        self.seed, self.random_state = seed, random_state
        self.device, self.process_group = device, process_group

    def fit(
        self, X: Any, y: None = None, sample_weight: Any = None, progress: Progress | None = None
    ) -> "ProjectiveClustering":
        """Fit the subspaces to the rows of `X`.

        Args:
            X: (n, d) tensor, array, list or DataFrame of real numbers; floats are not copied to a wider type.
            y: ignored.
            sample_weight: (n,) non-negative row weights; default: all one.
            progress: called after every start and every step; see `projclust.clustering.fit.Progress`.

        Raises:
            ProjclustError: NaN or infinity in `X`, j >= d, k > n, negative or all-zero weights, or an unknown option.
        """
        options, group = self._options(), self.process_group
        table = self._validated(X, reset=True)
        found = fit_clustering(
            table, options, sample_weight, device=self.device, process_group=group, progress=progress
        )
        self.labels_ = _like(X, found.labels)
        self.components_ = _like(X, found.bases)
        self.ranks_ = found.ranks
        self.means_ = None if found.means is None else _like(X, found.means)
        self.coefficients_ = _like(X, found.coefficients)
        self.inertia_ = found.inertia
        self.residuals_ = _like(X, found.residuals)
        self.spectra_ = _like(X, found.spectra)
        self.cost_history_ = found.cost_history
        self.n_iter_ = len(found.cost_history)
        return self

    def predict(self, X: Any) -> Any:
        """(n,) int64 labels of the fitted subspaces that are nearest to the rows of `X` (n, d).

        Raises:
            ProjclustError: not fitted yet, another number of columns, or NaN or infinity in `X`.
        """
        subspaces = self._subspaces()
        return _like(X, assign_rows(self._rows(X, subspaces), subspaces).labels)

    def transform(self, X: Any, labels: Any = None) -> Any:
        """(n, j) coordinates of the rows of `X` (n, d) in the bases of `labels` (n,), or else of the nearest subspaces.

        Raises:
            ProjclustError: not fitted yet, another number of columns, NaN or infinity in `X`, or other labels.
        """
        subspaces = self._subspaces()
        rows = self._rows(X, subspaces)
        own = assign_rows(rows, subspaces).labels if labels is None else _as_labels(labels, rows.norms, len(subspaces))
        return _like(X, project_rows(rows, own, subspaces)[0])

    def inverse_transform(self, X: Any, labels: Any) -> Any:
        """(n, d) rows rebuilt from their coordinates `X` (n, j) and `labels` (n,).

        Raises:
            ProjclustError: not fitted yet, NaN or infinity in `X`, another number of coordinates, or other labels.
        """
        subspaces = self._subspaces()
        (k, j, d), coefficients = subspaces.bases.shape, as_table(X)
        if coefficients.shape[1] != j:
            raise ProjclustError(f"rows have {j} coordinates each, not {coefficients.shape[1]}")
        labels = _as_labels(labels, coefficients[:, 0], k)
        rows = coefficients.new_empty(len(coefficients), d)
        for cluster, basis in enumerate(subspaces.bases.to(coefficients)):
            members = (labels == cluster).nonzero().squeeze(1)
            rows[members] = coefficients[members] @ basis
            if subspaces.means is not None:
                rows[members] += subspaces.means[cluster].to(coefficients)
        return _like(X, rows)

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[1])

    def _options(self) -> ClusteringOptions:
        given = {part.name: getattr(self, part.name) for part in fields(ClusteringOptions)}
        if self.n_init is not None:
            given["restarts"] = self.n_init
        if isinstance(self.random_state, np.random.RandomState):
            given["seed"] = int(self.random_state.randint(2**31 - 1))
        elif self.random_state is not None:
            given["seed"] = int(self.random_state)
        return ClusteringOptions(**given)

    def _subspaces(self) -> Subspaces:
        if not hasattr(self, "components_"):
            raise UnfittedError("this ProjectiveClustering is not fitted yet: call fit first")
        means = None if self.means_ is None else torch.as_tensor(self.means_, device=self.device)
        return Subspaces(torch.as_tensor(self.components_, device=self.device), means, self.ranks_)

    def _rows(self, X: Any, subspaces: Subspaces) -> Rows:
        """The rows of `X`, in the dtype and on the device of the fitted subspaces."""
        return Rows.of(as_table(self._validated(X, reset=False)).to(subspaces.bases))

    def _validated(self, X: Any, reset: bool) -> Any:
        """The matrix after scikit-learn's checks of its form and its columns; tensors are left as they are."""
        checks = {"dtype": [np.float64, np.float32, np.float16], "ensure_all_finite": False}
        try:
            return validate_data(self, X, reset=reset, skip_check_array=isinstance(X, Tensor), **checks)
        except ValueError as error:
            raise ProjclustError(str(error)) from None


def _as_labels(labels: Any, like: Tensor, k: int) -> Tensor:
    """The labels, which must be numbers of clusters, as a tensor of the shape and on the device of `like`."""
    found = torch.as_tensor(labels if isinstance(labels, Tensor) else np.array(labels), device=like.device)
    if found.shape != like.shape or found.is_floating_point() or ((found < 0) | (found >= k)).any():
        raise ProjclustError(f"labels must be {len(like)} whole numbers from 0 to {k - 1}, one for each row")
    return found


def _like(X: Any, values: Tensor) -> Any:
    """The values as a tensor where `X` is one, or else as a numpy array."""
    return values if isinstance(X, Tensor) else values.cpu().numpy()
