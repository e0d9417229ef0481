"""`ProjectiveEmbedding`: an embedding lookup that decodes the rows it needs and no others."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .factorized import FactorizedTable


class ProjectiveEmbedding(FactorizedTable):
    """Drop-in for `nn.Embedding` over a table held as k bases and n coefficient rows.

    Distinct tokens of a batch are decoded once, grouped by cluster, in one product per cluster. Under torch.compile
    and torch.export, where shapes may not depend on data, one product with the stacked bases does the same.

    Args:
        num_embeddings: n, the size of the vocabulary.
        embedding_dim: d.
        n_clusters: k.
        rank: j < d.
        affine: whether the subspaces have means.
        padding_idx: as in `nn.Embedding`: this token gives no gradient to any factor.
        scale: factor on the output, rounded to the weight's dtype first (Gemma, BART); None for no scaling.
        primary: the embedding whose factors this one shares by parameter tying (T5, BART).

    Raises:
        IndexError: in forward, when an id is outside the vocabulary.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        n_clusters: int,
        rank: int,
        affine: bool = False,
        padding_idx: int | None = None,
        scale: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: FactorizedTable | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, n_clusters, rank, affine, dtype, device, primary)
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
            if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
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
        coefficients = F.embedding(distinct, self.weight)  # (u, j)
        rows = torch.cat(
            [
                part @ basis if mean is None else torch.addmm(mean, part, basis)
                for part, basis, mean in self._by_cluster(coefficients, counts)
            ]
        )  # (u, d)
        if self.padding_idx is not None and torch.is_grad_enabled():
            padding = (distinct == position[self.padding_idx]).unsqueeze(1)
            rows = torch.where(padding, rows.detach(), rows)
        return rows, inverse

    def _decode_static(self, ids: Tensor) -> Tensor:
        """The row of every token, (N, d), by operations whose shapes do not depend on data."""
        # By F.embedding, whose compiled form checks the range of the ids, which that of index_select does not.
        position = F.embedding(ids, self.row_order().position.to(ids.device).unsqueeze(1)).squeeze(1)
        coefficients = F.embedding(position, self.weight)  # (N, j)
        member = F.one_hot(self.primary.clusters.index_select(0, ids).long(), self.n_clusters)
        member = member.to(coefficients.dtype)  # (N, k)
        blocks = (member.unsqueeze(2) * coefficients.unsqueeze(1)).flatten(1)  # (N, k*j), one block non-zero
        rows = blocks @ self.bases.flatten(0, 1)
        if self.means is not None:
            rows = rows + member @ self.means
        if self.padding_idx is not None:
            padding = (ids == self.padding_idx).unsqueeze(1)
            rows = torch.where(padding, rows.detach(), rows)
        return rows

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self.scale is None else rows * _rounded(self.scale, self.weight.dtype)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}, k={self.n_clusters}, j={self.rank}"
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
