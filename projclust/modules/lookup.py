"""What every compressed embedding does around the decoding of rows: shapes, padding, the scale of Gemma and BART."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .factorized import in_compiler


class EmbeddingLookup(nn.Module):
    """The lookup of an embedding whose table is not there, to be mixed in with a table that decodes rows.

    Distinct tokens of a batch are decoded once. On accelerators and under torch.compile and torch.export, where shapes
    may not depend on data, every token is decoded.

    Attributes:
        num_embeddings, embedding_dim: n and d.
        padding_idx: as in `nn.Embedding`: this token gives no gradient to anything.
        scale: factor on the output, rounded to the output's dtype first; None for no scaling.
        dense_class: what to rebuild when the model is made dense again.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    scale: float | None
    dense_class: type[nn.Embedding]

    def set_lookup(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, scale: float | None) -> None:
        """Set the attributes; `dense_class` to that of an ordinary embedding."""
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.scale = scale
        self.dense_class = nn.Embedding

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of shape ``ids.shape + (d,)``."""
        flat = ids.reshape(-1)
        # A lookup is not for autocast, which leaves that of nn.Embedding alone as well.
        with torch.autocast(ids.device.type, enabled=False):
            # Distinct tokens are data: a compiler has no shapes for them, and an accelerator would have to stop until
            # the host knows them.
            if ids.device.type != "cpu" or in_compiler():
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
        raise NotImplementedError

    def _decode_static(self, ids: Tensor) -> Tensor:
        """The row of every token, (N, d), by operations whose shapes do not depend on data."""
        raise NotImplementedError

    def _without_padding_gradient(self, rows: Tensor, is_padding: Tensor) -> Tensor:
        return torch.where(is_padding.unsqueeze(1), rows.detach(), rows)

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self.scale is None else rows * _rounded(self.scale, rows.dtype)

    def _lookup_text(self) -> str:
        """The end of `extra_repr`."""
        text = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return text if self.scale is None else f"{text}, scale={self.scale:g}"


def _rounded(scale: float, dtype: torch.dtype) -> float:
    """`scale` as the nearest number of `dtype`, which is what a scaled embedding multiplies by."""
    if dtype.itemsize >= 4:
        return scale
    return cast(float, torch.tensor(scale, dtype=dtype, device="cpu").item())
