"""The factors of a compressed embedding table, shared by the lookup and the tied output head."""

from collections.abc import Sequence
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from projclust.errors import ProjclustError

from .table import CompressedTable


class RowOrder(NamedTuple):
    """Where each vocabulary row lies in the coefficients, which are stored cluster by cluster.

    Attributes:
        position: (n,) int64; row i of the table is row ``position[i]`` of the coefficients.
        rows: (n,) int64, the inverse: row i of the coefficients is row ``rows[i]`` of the table.
        ends: (k,) int64; the first position after each cluster.
        sizes: rows of each cluster, in cluster order.
        starts: (n,) int64; row i's coefficients begin at element ``starts[i]`` of the flat ones. Unequal ranks only.
        of: the state of `clusters` this was built from.
    """

    position: Tensor
    rows: Tensor
    ends: Tensor
    sizes: list[int]
    starts: Tensor | None
    of: tuple[int, int, torch.device]


class FactorizedTable(CompressedTable):
    """A table of n rows in d dimensions as coefficients in k bases: ``row = coefficients @ basis (+ mean)``.

    The coefficient tensor is called `weight` on purpose: what reads the dtype, the device or the number of rows of an
    embedding's weight keeps working, and software that does not know the format stops at its shape (n, j) instead of
    going on with a random table.

    The rows of `weight` are grouped by cluster, in vocabulary order inside each group. So every cluster is one
    contiguous slice, which the output head multiplies without gathering; where a vocabulary row lies follows from
    `clusters` and is never stored.

    Clusters may have ranks of their own. Then nothing is padded: the coefficients are flat, each cluster's slice of
    them a matrix of its rank, and the bases lie one below the other.

    Attributes:
        weight: (n, j) coefficients, cluster by cluster; of unequal ranks (sum of n_c * j_c,).
        bases: (k, j, d); of unequal ranks (sum of j_c, d).
        means: (k, d) or None.
        clusters: (n,) the cluster of each vocabulary row, uint8 (k <= 256) or int32; a buffer of the primary table
            only. Secondary tables (a tied head) share the factors and read `clusters` from the primary.
        rank: the largest rank.
        ranks: of each cluster.
        cluster_sizes: the rows of each cluster, which `clusters` must keep to; None for equal ranks.

    Raises:
        ProjclustError: unequal ranks and sizes of clusters are not one for each cluster, or sizes not n in all.
    """

    weight: nn.Parameter
    bases: nn.Parameter
    means: nn.Parameter | None
    clusters: Tensor

    def __init__(
        self,
        n_rows: int,
        dim: int,
        n_clusters: int,
        rank: int | Sequence[int],
        affine: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        primary: "FactorizedTable | None",
        cluster_sizes: Sequence[int] | None,
    ) -> None:
        super().__init__()
        self.n_clusters = n_clusters
        self.cluster_sizes = None if cluster_sizes is None else list(cluster_sizes)
        self.ranks = [rank] * n_clusters if isinstance(rank, int) else list(rank)
        weight_shape: tuple[int, ...]
        bases_shape: tuple[int, ...]
        if isinstance(rank, int) and self.cluster_sizes is None:
            weight_shape, bases_shape = (n_rows, rank), (n_clusters, rank, dim)
        elif (
            self.cluster_sizes is not None
            and not isinstance(rank, int)
            and len(self.cluster_sizes) == len(self.ranks) == n_clusters
            and sum(self.cluster_sizes) == n_rows
        ):
            weight_shape, bases_shape = (sum(map(mul, self.cluster_sizes, self.ranks)),), (sum(self.ranks), dim)
        else:
            raise ProjclustError(
                f"unequal ranks are one for each of {n_clusters} clusters, and so are sizes, {n_rows} rows together"
            )
        self.rank = max(self.ranks)
        self.weight = nn.Parameter(torch.empty(weight_shape, dtype=dtype, device=device))
        self.bases = nn.Parameter(torch.empty(bases_shape, dtype=dtype, device=device))
        means = nn.Parameter(torch.empty(n_clusters, dim, dtype=dtype, device=device)) if affine else None
        self.register_parameter("means", means)
        # A list, so that the primary does not become a submodule of its secondary.
        self._primary = [] if primary is None else [primary]
        self._row_order: RowOrder | None = None
        if primary is None:
            # Not a Parameter (integers cannot require gradients); not int16, which gloo cannot broadcast.
            ids = torch.uint8 if n_clusters <= 256 else torch.int32
            self.register_buffer("clusters", torch.empty(n_rows, dtype=ids, device=device))

    @property
    def primary(self) -> "FactorizedTable":
        """The table that owns `clusters`: this one, or the one it is tied to."""
        return self._primary[0] if self._primary else self

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self.weight.dtype

    def prepare(self) -> None:
        """Build the row order."""
        self.row_order()

    def factor_names(self) -> list[str]:
        """Names of the trainable factors."""
        return ["weight", "bases"] if self.means is None else ["weight", "bases", "means"]

    def row_order(self) -> RowOrder:
        """Where each vocabulary row lies in `weight`; built anew when `clusters` was changed or moved.

        Raises:
            ProjclustError: a cluster id is not one of the k, or the clusters have other sizes than the coefficients.
        """
        owner = self.primary
        order = owner._row_order
        # A compiler cannot look at the state of `clusters`, nor can it build the order: it takes what is there.
        if order is not None and (torch.compiler.is_compiling() or order.of == _state(owner.clusters)):
            return order
        # As ordinary tensors, also under inference_mode: training may come next.
        with torch.inference_mode(False), torch.no_grad():
            clusters = owner.clusters.long()
            if int(clusters.min()) < 0 or int(clusters.max()) >= owner.n_clusters:
                raise ProjclustError(f"a cluster id lies outside 0 .. {owner.n_clusters - 1}")
            rows = clusters.argsort(stable=True)
            position = torch.empty_like(rows)
            position[rows] = torch.arange(len(rows), device=rows.device)
            counts = torch.bincount(clusters, minlength=owner.n_clusters)
            ends, sizes, starts = counts.cumsum(0), counts.tolist(), None
            if owner.cluster_sizes is not None:
                if sizes != owner.cluster_sizes:
                    raise ProjclustError("the cluster ids do not give the clusters the sizes of their coefficients")
                ranks = torch.tensor(owner.ranks, device=rows.device)
                lengths = counts * ranks
                row_in_cluster = position - (ends - counts)[clusters]
                starts = (lengths.cumsum(0) - lengths)[clusters] + row_in_cluster * ranks[clusters]
            owner._row_order = RowOrder(position, rows, ends, sizes, starts, _state(owner.clusters))
        return owner._row_order

    @torch.no_grad()
    def set_factors(self, labels: Tensor, coefficients: Tensor, bases: Tensor, means: Tensor | None) -> None:
        """Fill the table.

        Args:
            labels: (n,) cluster of each vocabulary row.
            coefficients: (n, j) in vocabulary order; like the rest, of any float dtype and on any device. Of unequal
                ranks j is the largest, and what lies beyond a cluster's own is left out, here and in `bases`.
            bases: (k, j, d).
            means: (k, d), or None for a table without means.

        Raises:
            ProjclustError: the labels do not give the clusters their sizes.
        """
        self.clusters.copy_(labels)
        self._row_order = None
        sizes = self.row_order().sizes
        grouped = coefficients[labels.argsort(stable=True)].split(sizes)
        for part, given in zip(by_cluster(self.weight, sizes, self.ranks), grouped, strict=True):
            part.copy_(given[:, : part.shape[1]])
        for basis, given in zip(self.basis_of_each(), bases, strict=True):
            basis.copy_(given[: len(basis)])
        if self.means is not None and means is not None:
            self.means.copy_(means)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """(n, d) the table itself, in the factors' dtype."""
        order = self.row_order()
        parts = by_cluster(self.weight, order.sizes, self.ranks)
        rows = torch.cat(list(map(_rebuild, parts, self.basis_of_each(), self.mean_of_each())))
        return rows[order.position.to(rows.device)].to(self.weight.dtype)

    def basis_of_each(self) -> Sequence[Tensor]:
        """The (j_c, d) basis of each cluster."""
        # split, whose backward is one cat: indexing would make a zero gradient of all bases for every cluster.
        return self.bases.flatten(0, -2).split(self.ranks)

    def mean_of_each(self) -> Sequence[Tensor | None]:
        """The (d,) mean of each cluster, or None."""
        return [None] * self.n_clusters if self.means is None else self.means.unbind(0)

    def ranks_text(self) -> str:
        """The ranks, for `extra_repr`."""
        return f"j={self.rank}" if self.cluster_sizes is None else f"j={min(self.ranks)}..{self.rank}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._rebuild_row_order()

    def _apply(self, fn: Any, recurse: bool = True) -> "FactorizedTable":
        super()._apply(fn, recurse)
        self._rebuild_row_order()
        return self

    def _rebuild_row_order(self) -> None:
        built, self._row_order = self._row_order is not None, None
        # Now rather than on first use, so that a compiled forward finds it.
        if built and not self.primary.clusters.is_meta:
            self.row_order()


def by_cluster(weight: Tensor, sizes: Sequence[int], ranks: Sequence[int]) -> list[Tensor]:
    """The (n_c, j_c) coefficients of each cluster, views of what `weight` holds cluster by cluster."""
    # split, as for the bases.
    parts = weight.flatten().split([size * rank for size, rank in zip(sizes, ranks, strict=True)])
    return [part.view(size, rank) for part, size, rank in zip(parts, sizes, ranks, strict=True)]


def in_compiler() -> bool:
    """Whether operations are being recorded (torch.compile, torch.export, torch.jit.trace) and not just run."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


def _state(clusters: Tensor) -> tuple[int, int, torch.device]:
    """Changes whenever the ids change or move, but for changes in place of inference tensors, which have no version."""
    return clusters.data_ptr(), -1 if clusters.is_inference() else clusters._version, clusters.device


def _rebuild(coefficients: Tensor, basis: Tensor, mean: Tensor | None) -> Tensor:
    rows = coefficients.float() @ basis.float() if basis.dtype.itemsize < 4 else coefficients @ basis
    return rows if mean is None else rows + mean
