"""`ProjectiveEmbedding`: an embedding lookup that decodes the rows it needs and no others."""

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .factorized import FactorizedTable, by_cluster, in_compiler


class ProjectiveEmbedding(FactorizedTable):
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
        super().__init__(num_embeddings, embedding_dim, n_clusters, rank, affine, dtype, device, primary, cluster_sizes)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.scale = scale
        # What to rebuild when the model is made dense again.
        self.dense_class: type[nn.Embedding] = nn.Embedding

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of shape ``ids.shape + (d,)`` in the weight's dtype."""
        flat = ids.reshape(-1)
        # A lookup is not for autocast, which leaves that of nn.Embedding alone as well.
        with torch.autocast(self.weight.device.type, enabled=False):
            # Distinct tokens and the sizes of their groups are data: a compiler has no shapes for them, and an
            # accelerator would have to stop until the host knows them.
            if self.weight.device.type != "cpu" or in_compiler():
                rows = self._scaled(self._decode_static(flat))
            else:
                distinct_rows, inverse = self._decode_distinct(flat)
                rows = F.embedding(inverse, self._scaled(distinct_rows))
        return rows.view(*ids.shape, self.embedding_dim)

    def rows(self, ids: Tensor) -> Tensor:
        """(N, d) rows of the table for a vector of ids, without the scale: what the dense weight would hold."""
        distinct_rows, inverse = self._decode_distinct(ids)
        return F.embedding(inverse, distinct_rows)

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
            padding = (distinct == position[self.padding_idx]).unsqueeze(1)
            rows = torch.where(padding, rows.detach(), rows)
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
        """The row of every token, (N, d), by operations whose shapes do not depend on data.

        The tokens' coefficients are laid out in blocks that each belong to one cluster, so that one batched product
        decodes all. With N // k + 2 slots a block, at most 2k blocks suffice however the tokens are spread: less than
        twice the work of the groups themselves, and the blocks' bases take no more memory than the bases twice.
        """
        coefficients = self._padded_coefficients(ids)  # (N, j)
        clusters = self.primary.clusters.index_select(0, ids).long()  # (N,)

        tokens = ids.shape[0]
        size = tokens // self.n_clusters + 2  # never 1, which export would make a case of its own
        n_blocks = (tokens + self.n_clusters * (size - 1)) // size
        member = clusters.unsqueeze(1) == torch.arange(self.n_clusters, device=ids.device)  # (N, k)
        rank_in_cluster = member.cumsum(0).gather(1, clusters.unsqueeze(1)).squeeze(1) - 1
        blocks_of_cluster = (member.sum(0) + size - 1) // size  # (k,)
        ends = blocks_of_cluster.cumsum(0)
        slots = (ends - blocks_of_cluster).index_select(0, clusters) * size + rank_in_cluster  # (N,) all different
        blocks = torch.arange(n_blocks, device=ids.device).unsqueeze(1)
        owner = (blocks >= ends).sum(1).clamp(max=self.n_clusters - 1)  # the last blocks may be empty

        laid_out = coefficients.new_zeros(n_blocks * size, self.rank).index_copy(0, slots, coefficients)
        decoded = laid_out.view(n_blocks, size, self.rank) @ self._padded_bases().index_select(0, owner)
        rows = decoded.flatten(0, 1).index_select(0, slots)
        if self.means is not None:
            rows = rows + F.embedding(clusters, self.means)
        if self.padding_idx is not None:
            padding = (ids == self.padding_idx).unsqueeze(1)
            rows = torch.where(padding, rows.detach(), rows)
        return rows

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self.scale is None else rows * _rounded(self.scale, self.weight.dtype)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}, k={self.n_clusters}, {self.ranks_text()}"
        if self.means is not None:
            text += ", affine"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.scale is not None:
            text += f", scale={self.scale:g}"
        return text


def _rounded(scale: float, dtype: torch.dtype) -> float:
    """`scale` as the nearest number of `dtype`, which is what a scaled embedding multiplies by."""
    if dtype.itemsize >= 4:
        return scale
    return cast(float, torch.tensor(scale, dtype=dtype, device="cpu").item())
