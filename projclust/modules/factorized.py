"""The factors of a compressed embedding table, shared by the lookup and the tied output head."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from projclust.errors import ProjclustError


class RowOrder(NamedTuple):
    """Where each vocabulary row lies in the coefficients, which are stored cluster by cluster.

    Attributes:
        position: (n,) int64; row i of the table is row ``position[i]`` of the coefficients.
        ends: (k,) int64; the first position after each cluster.
        sizes: rows of each cluster, in cluster order.
        of: the state of `clusters` this was built from.
    """

    position: Tensor
    ends: Tensor
    sizes: list[int]
    of: tuple[int, int, torch.device]


class FactorizedTable(nn.Module):
    """A table of n rows in d dimensions as coefficients in k bases: ``row = coefficients @ basis (+ mean)``.

    The coefficient tensor is called `weight` on purpose: what reads the dtype, the device or the number of rows of an
    embedding's weight keeps working, and software that does not know the format stops at its shape (n, j) instead of
    going on with a random table.

    The rows of `weight` are grouped by cluster, in vocabulary order inside each group. So every cluster is one
    contiguous slice, which the output head multiplies without gathering; where a vocabulary row lies follows from
    `clusters` and is never stored.

    Attributes:
        weight: (n, j) coefficients, cluster by cluster.
        bases: (k, j, d).
        means: (k, d) or None.
        clusters: (n,) the cluster of each vocabulary row, uint8 (k <= 256) or int32; a buffer of the primary table
            only. Secondary tables (a tied head) share the factors and read `clusters` from the primary.
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
        rank: int,
        affine: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        primary: "FactorizedTable | None",
    ) -> None:
        super().__init__()
        self.n_clusters = n_clusters
        self.rank = rank
        self.weight = nn.Parameter(torch.empty(n_rows, rank, dtype=dtype, device=device))
        self.bases = nn.Parameter(torch.empty(n_clusters, rank, dim, dtype=dtype, device=device))
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

    def factor_names(self) -> list[str]:
        """Names of the trainable factors."""
        return ["weight", "bases"] if self.means is None else ["weight", "bases", "means"]

    def row_order(self) -> RowOrder:
        """Where each vocabulary row lies in `weight`; built anew when `clusters` was changed or moved.

        Raises:
            ProjclustError: a cluster id is not one of the k.
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
            sizes = torch.bincount(clusters, minlength=owner.n_clusters)
            owner._row_order = RowOrder(position, sizes.cumsum(0), sizes.tolist(), _state(owner.clusters))
        return owner._row_order

    @torch.no_grad()
    def set_factors(self, labels: Tensor, coefficients: Tensor, bases: Tensor, means: Tensor | None) -> None:
        """Fill the table.

        Args:
            labels: (n,) cluster of each vocabulary row.
            coefficients: (n, j) in vocabulary order; like the rest, of any float dtype and on any device.
            bases: (k, j, d).
            means: (k, d), or None for a table without means.
        """
        self.clusters.copy_(labels)
        self._row_order = None
        order = labels.argsort(stable=True)
        self.weight.copy_(coefficients[order])
        self.bases.copy_(bases)
        if self.means is not None and means is not None:
            self.means.copy_(means)
        self.row_order()

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """(n, d) the table itself, in the factors' dtype. For export only: no forward pass builds it."""
        order = self.row_order()
        rows = torch.cat([_rebuild(*parts) for parts in self._by_cluster(self.weight, order.sizes)])
        return rows[order.position.to(rows.device)].to(self.weight.dtype)

    def _by_cluster(self, coefficients: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """(coefficients, basis, mean) of each cluster; `coefficients` grouped by cluster in groups of `sizes`."""
        # unbind, whose backward stacks: indexing would make a zero gradient of all bases for every cluster.
        bases = self.bases.unbind(0)
        means = [None] * len(sizes) if self.means is None else list(self.means.unbind(0))
        return list(zip(coefficients.split(sizes), bases, means, strict=True))

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


def _state(clusters: Tensor) -> tuple[int, int, torch.device]:
    """Changes whenever the ids change or move, but for changes in place of inference tensors, which have no version."""
    return clusters.data_ptr(), -1 if clusters.is_inference() else clusters._version, clusters.device


def _rebuild(coefficients: Tensor, basis: Tensor, mean: Tensor | None) -> Tensor:
    rows = coefficients.float() @ basis.float() if basis.dtype.itemsize < 4 else coefficients @ basis
    return rows if mean is None else rows + mean
