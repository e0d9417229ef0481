"""Tables held as coefficients in the bases of subspaces, and the lookup that decodes the rows it needs."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projclust.errors import ProjclustError
from projclust.shapes import FactoredShape
from projclust.tables.grouped import grouped_product
from projclust.tables.lookup import EmbeddingLookup
from projclust.tables.table import CompressedTable, inverse_of


class RowOrder(NamedTuple):
    """Where each vocabulary row lies in the coefficients, which are stored cluster by cluster; tensors are int64."""

    position: Tensor  # (n,) row i of the table is row position[i] of the coefficients
    rows: Tensor  # (n,) the inverse: row i of the coefficients is row rows[i] of the table
    ends: Tensor  # (k,) the first position after each cluster
    sizes: list[int]  # the number of rows of each cluster
    starts: Tensor | None  # (n,) with unequal ranks, the first element of each row in the flat coefficients

    def to(self, device: torch.device) -> "RowOrder":
        """The same on a device."""
        if self.position.device == device:
            return self
        starts = None if self.starts is None else self.starts.to(device)
        return self._replace(
            position=self.position.to(device), rows=self.rows.to(device), ends=self.ends.to(device), starts=starts
        )


class FactorizedTable(CompressedTable[FactoredShape]):
    """A table of n rows in d dimensions as coefficients in k bases: ``row = coefficients @ basis (+ mean)``.

    The coefficient tensor is called `weight` on purpose: what reads the dtype, the device or the number of rows of an
    embedding's weight keeps working, and software that does not know the format stops at its shape (n, j) instead of
    going on with a random table. Its rows are grouped by cluster, in vocabulary order inside each group, so that the
    output head multiplies contiguous slices; where a vocabulary row lies follows from `clusters` and is never stored.

    Clusters may have ranks of their own. Then nothing is padded: the coefficients are flat, each cluster's slice of
    them a matrix of its rank, and the bases lie one below the other; `clusters` must keep to `cluster_sizes`.
    Secondary tables (a tied head) share the factors and read `clusters` from the primary.
    """

    weight: nn.Parameter  # (n, j) coefficients, cluster by cluster; of unequal ranks (sum of n_c * j_c,)
    bases: nn.Parameter  # (k, j, d); of unequal ranks (sum of j_c, d)
    means: nn.Parameter | None  # (k, d)
    clusters: Tensor  # (n,) the cluster of each vocabulary row, uint8 (k <= 256) or int32; the primary's only

    def _allocate(self, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        shape = self.shape
        self.n_clusters = shape.k
        self.ranks = [shape.j] * shape.k if shape.ranks is None else list(shape.ranks)
        self.rank = max(self.ranks)
        self.cluster_sizes = None if shape.sizes is None else list(shape.sizes)
        for name in ("weight", "bases", "means"):
            factor = nn.Parameter(torch.empty(shape.stored[name], dtype=dtype, device=device))
            self.register_parameter(name, factor if name != "means" or shape.affine else None)
        if self.primary is self:
            # Not a Parameter (integers cannot require gradients); not int16, which gloo cannot broadcast.
            ids = torch.uint8 if shape.k <= 256 else torch.int32
            self.register_buffer("clusters", torch.empty(shape.stored["clusters"], dtype=ids, device=device))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factors."""
        return self.weight.dtype

    def factor_names(self) -> list[str]:
        """Names of the trainable factors."""
        return ["weight", "bases"] if self.means is None else ["weight", "bases", "means"]

    def row_order(self) -> RowOrder:
        """Where each vocabulary row lies in `weight`; built anew when `clusters` was changed or moved."""
        return self._derived()

    def _ids(self) -> list[Tensor]:
        return [self.primary.clusters]

    def _derive(self) -> RowOrder:
        clusters = self.clusters.long()
        if int(clusters.min()) < 0 or int(clusters.max()) >= self.n_clusters:
            raise ProjclustError(f"a cluster id lies outside 0 .. {self.n_clusters - 1}")
        rows = clusters.argsort(stable=True)
        position = inverse_of(rows)
        counts = torch.bincount(clusters, minlength=self.n_clusters)
        ends, sizes, starts = counts.cumsum(0), counts.tolist(), None
        if self.cluster_sizes is not None:
            if sizes != self.cluster_sizes:
                raise ProjclustError("the cluster ids do not give the clusters the sizes of their coefficients")
            ranks = torch.tensor(self.ranks, device=rows.device)
            lengths = counts * ranks
            row_in_cluster = position - (ends - counts)[clusters]
            starts = (lengths.cumsum(0) - lengths)[clusters] + row_in_cluster * ranks[clusters]
        return RowOrder(position, rows, ends, sizes, starts=starts)

    @torch.no_grad()
    def set_factors(self, labels: Tensor, coefficients: Tensor, bases: Tensor, means: Tensor | None) -> None:
        """Fill the table, from factors of any float dtype and on any device.

        The labels, (n,), and coefficients, (n, j), are in vocabulary order; bases are (k, j, d), means (k, d). Of
        unequal ranks j is the largest: what lies beyond a cluster's own is left out.
        """
        self.clusters.copy_(labels)
        self._index = None
        sizes = self.row_order().sizes
        grouped = coefficients[labels.argsort(stable=True)].split(sizes)
        for part, given in zip(by_cluster(self.weight, sizes, self.ranks), grouped, strict=True):
            part.copy_(given[:, : part.shape[1]])
        for basis, given in zip(self.basis_of_each(), bases, strict=True):
            basis.copy_(given[: len(basis)])
        if self.means is not None and means is not None:
            self.means.copy_(means)

    def decode(self, ids: Tensor) -> Tensor:
        """(N, d) the row of every token, in one batched product."""
        coefficients = self._padded_coefficients(ids)  # (N, j)
        clusters = self.primary.clusters.index_select(0, ids).long()  # (N,)
        rows = grouped_product(coefficients, clusters, self._padded_bases())
        return rows if self.means is None else rows + F.embedding(clusters, self.means)

    def _padded_coefficients(self, ids: Tensor) -> Tensor:
        """(N, j) for every token, j the largest rank; beyond a token's own rank lies anything."""
        order = self.row_order().to(ids.device)
        # By F.embedding, whose compiled form checks the range of the ids, which that of index_select does not.
        if order.starts is None:
            position = F.embedding(ids, order.position.unsqueeze(1)).squeeze(1)
            return F.embedding(position, self.weight)
        starts = F.embedding(ids, order.starts.unsqueeze(1))  # (N, 1)
        elements = (starts + torch.arange(self.rank, device=ids.device)).clamp(max=self.weight.numel() - 1)
        return self.weight.gather(0, elements.flatten()).view(-1, self.rank)

    def _padded_bases(self) -> Tensor:
        """(k, j, d), j the largest rank; zero beyond a cluster's own rank, so that coefficients there count nothing."""
        if self.cluster_sizes is None:
            return self.bases
        bases = zip(self.basis_of_each(), self.ranks, strict=True)
        return torch.stack([F.pad(basis, (0, 0, 0, self.rank - rank)) for basis, rank in bases])

    @torch.no_grad()
    def compressed_rows(self) -> Tensor:
        """(n, d) the rows that have coefficients, in the factors' dtype."""
        order = self.row_order().to(self.weight.device)
        parts = by_cluster(self.weight, order.sizes, self.ranks)
        rows = torch.cat(list(map(_rebuild, parts, self.basis_of_each(), self.mean_of_each())))
        return rows[order.position].to(self.weight.dtype)

    @torch.no_grad()
    def cut(self, n: int) -> None:
        """Keep the coefficients of the first n rows."""
        order = self.row_order()
        kept = [rows < n for rows in order.rows.to(self.weight.device).split(order.sizes)]
        parts = [part[own] for part, own in zip(by_cluster(self.weight, order.sizes, self.ranks), kept, strict=True)]
        sizes = None if self.cluster_sizes is None else tuple(map(len, parts))
        shape = replace(self.shape, n=n, sizes=sizes)
        self.cluster_sizes = None if sizes is None else list(sizes)
        # The parameter itself stays: what is tied to it and an optimizer may hold it.
        self.weight.data = torch.cat([part.flatten() for part in parts]).view(shape.stored["weight"])
        self.clusters, self.shape = self.clusters[:n].clone(), shape
        self._forget()

    def basis_of_each(self) -> Sequence[Tensor]:
        """The (j_c, d) basis of each cluster."""
        # split, whose backward is one cat: indexing would make a zero gradient of all bases for every cluster.
        return self.bases.flatten(0, -2).split(self.ranks)

    def mean_of_each(self) -> Sequence[Tensor | None]:
        """The (d,) mean of each cluster, or None."""
        return [None] * self.n_clusters if self.means is None else self.means.unbind(0)

    def table_text(self) -> str:
        ranks = f"j={self.rank}" if self.cluster_sizes is None else f"j={min(self.ranks)}..{self.rank}"
        return f"k={self.n_clusters}, {ranks}" + (", affine" if self.means is not None else "")


class ProjectiveEmbedding(EmbeddingLookup[FactoredShape], FactorizedTable):
    """Drop-in for `nn.Embedding` over a table held as k bases and n coefficient rows.

    The factorisation is that of Maalouf, Lang, Rus and Feldman, "Deep Learning Meets Projective Clustering", ICLR 2021.
    Distinct tokens are decoded in one product for each cluster; where shapes may not depend on data, every token is
    decoded, in one batched product of blocks of fixed size. Ids of any shape give vectors of ``ids.shape + (d,)``.

    Args:
        shape: n, d, k, the rank or ranks below d, and whether the subspaces have means.
        padding_idx: as in `nn.Embedding`: this token gives no gradient to any factor.
        scale: factor on the output, rounded to the weight's dtype first (Gemma, BART); None for no scaling.
        dtype, device: those of the factors; torch's defaults.
        primary: the embedding whose factors this one shares by parameter tying (T5, BART).

    Raises:
        IndexError: in forward, when an id is outside the vocabulary.

    Example::

        embedding = ProjectiveEmbedding(FactoredShape(n=30522, d=768, k=5, j=64), padding_idx=0)
        embedding.set_factors(labels, coefficients, bases, means=None)
        vectors = embedding(torch.tensor([[101, 7592, 102]]))  # (1, 3, 768)
    """

    def _decode_distinct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        order = self.row_order().to(ids.device)
        position, ends = order.position, order.ends
        # Sorted distinct positions are also sorted by cluster, since the coefficients lie cluster by cluster.
        distinct, inverse = position.index_select(0, ids).unique(return_inverse=True)
        counts = torch.searchsorted(distinct, ends).diff(prepend=ends.new_zeros(1)).tolist()
        parts = self._coefficients_at(distinct, counts)
        each = zip(parts, self.basis_of_each(), self.mean_of_each(), strict=True)
        rows = torch.cat([own @ basis if mean is None else torch.addmm(mean, own, basis) for own, basis, mean in each])
        if self.padding_idx is not None and self.padding_idx < self.shape.n and torch.is_grad_enabled():
            rows = torch.where((distinct == position[self.padding_idx]).unsqueeze(1), rows.detach(), rows)
        return rows, inverse

    def _coefficients_at(self, positions: Tensor, counts: list[int]) -> Sequence[Tensor]:
        """The (u_c, j_c) coefficients at sorted positions, of which `counts` fall to each cluster."""
        if self.cluster_sizes is None:
            return F.embedding(positions, self.weight).split(counts)
        stored = by_cluster(self.weight, self.cluster_sizes, self.ranks)
        firsts = accumulate(self.cluster_sizes, initial=0)
        return [
            F.embedding(part - first, coefficients)
            for part, first, coefficients in zip(positions.split(counts), firsts, stored, strict=False)
        ]


def by_cluster(weight: Tensor, sizes: Sequence[int], ranks: Sequence[int]) -> list[Tensor]:
    """The (n_c, j_c) coefficients of each cluster, views of what `weight` holds cluster by cluster."""
    # split, as for the bases.
    parts = weight.flatten().split([size * rank for size, rank in zip(sizes, ranks, strict=True)])
    return [part.view(size, rank) for part, size, rank in zip(parts, sizes, ranks, strict=True)]


def _rebuild(coefficients: Tensor, basis: Tensor, mean: Tensor | None) -> Tensor:
    rows = coefficients.float() @ basis.float() if basis.dtype.itemsize < 4 else coefficients @ basis
    return rows if mean is None else rows + mean
