"""`ProjectiveEmbedding`: an embedding lookup that decodes the rows it needs and no others."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .factorized import FactorizedTable, by_cluster
from .grouped import grouped_product
from .lookup import EmbeddingLookup


class ProjectiveEmbedding(EmbeddingLookup, FactorizedTable):
    """Drop-in for `nn.Embedding` over a table held as k bases and n coefficient rows.

    Distinct tokens of a batch are decoded once, grouped by cluster, in one product per cluster. On accelerators and
    under torch.compile and torch.export, where shapes may not depend on data, every token is decoded, in one batched
    product of blocks of fixed size.

    Args:
        num_embeddings: n, the size of the vocabulary.
        embedding_dim: d.
        n_clusters: k.
        rank: j < d, or a rank for each cluster.
        affine: whether the subspaces have means.
        padding_idx: as in `nn.Embedding`: this token gives no gradient to any factor.
        scale: factor on the output, rounded to the weight's dtype first (Gemma, BART); None for no scaling.
        primary: the embedding whose factors this one shares by parameter tying (T5, BART).
        cluster_sizes: with a rank for each cluster: the number of its rows.

    Raises:
        ProjclustError: unequal ranks and sizes of clusters are not one for each cluster, or sizes not n in all.
        IndexError: in forward, when an id is outside the vocabulary.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        n_clusters: int,
        rank: int | Sequence[int],
        affine: bool = False,
        padding_idx: int | None = None,
        scale: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: FactorizedTable | None = None,
        cluster_sizes: Sequence[int] | None = None,
    ) -> None:
        FactorizedTable.__init__(
            self, num_embeddings, embedding_dim, n_clusters, rank, affine, dtype, device, primary, cluster_sizes
        )
        self.set_lookup(num_embeddings, embedding_dim, padding_idx, scale)

    def _decode_distinct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the u distinct tokens, (u, d), and for each token which of them it is, (N,)."""
        order = self.row_order()
        position, ends = order.position.to(ids.device), order.ends.to(ids.device)
        # Sorted distinct positions are also sorted by cluster, since the coefficients lie cluster by cluster.
        distinct, inverse = position.index_select(0, ids).unique(return_inverse=True)
        counts = torch.searchsorted(distinct, ends).diff(prepend=ends.new_zeros(1)).tolist()
        parts = self._coefficients_at(distinct, counts)
        rows = torch.cat(
            [
                part @ basis if mean is None else torch.addmm(mean, part, basis)
                for part, basis, mean in zip(parts, self.basis_of_each(), self.mean_of_each(), strict=True)
            ]
        )  # (u, d)
        if self.padding_idx is not None and torch.is_grad_enabled():
            rows = self._without_padding_gradient(rows, distinct == position[self.padding_idx])
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

    def _padded_coefficients(self, ids: Tensor) -> Tensor:
        """(N, j) for every token, j the largest rank; beyond a token's own rank lies anything."""
        order = self.row_order()
        # By F.embedding, whose compiled form checks the range of the ids, which that of index_select does not.
        if order.starts is None:
            position = F.embedding(ids, order.position.to(ids.device).unsqueeze(1)).squeeze(1)
            return F.embedding(position, self.weight)
        starts = F.embedding(ids, order.starts.to(ids.device).unsqueeze(1))  # (N, 1)
        elements = (starts + torch.arange(self.rank, device=ids.device)).clamp(max=self.weight.numel() - 1)
        return self.weight.gather(0, elements.flatten()).view(-1, self.rank)

    def _padded_bases(self) -> Tensor:
        """(k, j, d), j the largest rank; zero beyond a cluster's own rank, so that coefficients there count nothing."""
        if self.cluster_sizes is None:
            return self.bases
        bases = zip(self.basis_of_each(), self.ranks, strict=True)
        return torch.stack([F.pad(basis, (0, 0, 0, self.rank - rank)) for basis, rank in bases])

    def _decode_static(self, ids: Tensor) -> Tensor:
        """The row of every token, (N, d), by operations whose shapes do not depend on data."""
        coefficients = self._padded_coefficients(ids)  # (N, j)
        clusters = self.primary.clusters.index_select(0, ids).long()  # (N,)
        rows = grouped_product(coefficients, clusters, self._padded_bases())
        if self.means is not None:
            rows = rows + F.embedding(clusters, self.means)
        if self.padding_idx is not None:
            rows = self._without_padding_gradient(rows, ids == self.padding_idx)
        return rows

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}, k={self.n_clusters}, {self.ranks_text()}"
        return text + (", affine" if self.means is not None else "") + self._lookup_text()
