"""What every compressed embedding does around the decoding of rows: shapes, padding, the scale of Gemma and BART."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projclust.tables.table import CompressedTable, Shape, in_compiler

if TYPE_CHECKING:
    from typing_extensions import Self


class EmbeddingLookup(CompressedTable[Shape]):
    """The lookup of an embedding whose table is not there, to be mixed in with a table that decodes rows.

    Distinct tokens of a batch are decoded once. On accelerators and under torch.compile and torch.export, where shapes
    may not depend on data, every token is decoded. `dense_class` is the class that `to_dense` makes.
    """

    def __init__(
        self,
        shape: Shape,
        padding_idx: int | None = None,
        scale: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: CompressedTable[Shape] | None = None,
    ) -> None:
        super().__init__(shape, dtype, device, primary)
        self.num_embeddings, self.embedding_dim = shape.height, shape.d
        self.padding_idx = padding_idx
        self.scale = scale
        self.dense_class: type[nn.Embedding] = nn.Embedding

    @classmethod
    def from_dense(cls, old: nn.Embedding, shape: Shape, primary: CompressedTable[Shape] | None = None) -> "Self":
        """The embedding, yet to be filled, that takes the place of `old`, with its device, dtype, padding and scale."""
        dtype, device = old.weight.dtype, old.weight.device
        new = cls(shape, old.padding_idx, _scale_of(old), dtype=dtype, device=device, primary=primary)
        new.dense_class = type(old)
        new.training = old.training
        return new

    def to_dense(self, weight: nn.Parameter) -> nn.Embedding:
        """The embedding of `dense_class` with this weight, (n, d), and the padding and scale."""
        options: dict[str, Any] = {} if self.scale is None else {"embed_scale": self.scale}
        # With one row, for the weight is replaced next; and without touching anybody's random numbers.
        with torch.random.fork_rng(devices=[]):
            embedding = self.dense_class(1, self.embedding_dim, None, **options).to(weight.device)
        embedding.num_embeddings, embedding.padding_idx = self.num_embeddings, self.padding_idx
        embedding.weight = weight
        return embedding.train(self.training)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of shape ``ids.shape + (d,)``."""
        rows = self._with_added(ids.reshape(-1), self._found, self._scaled)
        return rows.view(*ids.shape, self.embedding_dim)

    def _with_added(
        self, ids: Tensor, find: Callable[[Tensor], Tensor], finish: Callable[[Tensor], Tensor] = lambda rows: rows
    ) -> Tensor:
        """(N, d) rows for a vector of ids: `find` gives those that are not there, `finish` sees those that are."""
        added, n = self.primary.added, self.shape.n
        if added is None:
            return find(ids)
        padding = None if self.padding_idx is None or self.padding_idx < n else self.padding_idx - n
        own = finish(F.embedding((ids - n).clamp(min=0), added, padding))
        return torch.where((ids >= n).unsqueeze(1), own, find(ids.clamp(max=n - 1)))

    def _found(self, flat: Tensor) -> Tensor:
        """(N, d) the rows of a vector of ids, scaled."""
        read = self._read(flat)
        if read is not None:
            return self._scaled(read)
        # A lookup is not for autocast, which leaves that of nn.Embedding alone as well.
        with torch.autocast(flat.device.type, enabled=False):
            # Distinct tokens are data: a compiler has no shapes for them, and an accelerator would have to stop until
            # the host knows them.
            if flat.device.type != "cpu" or in_compiler():
                return self._scaled(self._decode_static(flat))
            distinct_rows, inverse = self._decode_distinct(flat)
            return F.embedding(inverse, self._scaled(distinct_rows))

    def _read(self, ids: Tensor) -> Tensor | None:
        """(N, d) the rows of a vector of ids without the scale, by compiled loops; None where torch has to do it."""
        return None

    def rows(self, ids: Tensor) -> Tensor:
        """(N, d) rows of the table for a vector of ids, without the scale: what the dense weight would hold."""

        def find(own: Tensor) -> Tensor:
            distinct_rows, inverse = self._decode_distinct(own)
            return F.embedding(inverse, distinct_rows)

        return self._with_added(ids, find)

    def _decode_distinct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the u distinct tokens, (u, d), and for each token which of them it is, (N,)."""
        distinct, inverse = ids.unique(return_inverse=True)
        return self._decode_static(distinct), inverse

    def _decode_static(self, ids: Tensor) -> Tensor:
        rows = self.decode(ids)
        if self.padding_idx is not None and torch.is_grad_enabled():
            rows = torch.where((ids == self.padding_idx).unsqueeze(1), rows.detach(), rows)
        return rows

    def _scaled(self, rows: Tensor) -> Tensor:
        """Rows times the scale as the nearest number of their dtype, which is what a scaled embedding multiplies by."""
        if self.scale is None:
            return rows
        narrow = rows.dtype.itemsize < 4
        return rows * (torch.tensor(self.scale, dtype=rows.dtype, device="cpu").item() if narrow else self.scale)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}, {self.table_text()}"
        text += "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return text if self.scale is None else f"{text}, scale={self.scale:g}"


def is_known_lookup(module: nn.Module) -> bool:
    """Whether a module does what `EmbeddingLookup` does: an ordinary embedding, or one scaled by a number."""
    if type(module) is nn.Embedding:
        return True
    is_scaled = isinstance(module, nn.Embedding) and type(module).__name__.endswith("ScaledWordEmbedding")
    # T5Gemma2's holds a vector of its own for one of the tokens.
    holds = [name for name, _ in module.named_parameters()]
    return is_scaled and holds == ["weight"] and _scale_of(module) is not None


def _scale_of(module: nn.Module) -> float | None:
    # The scalar first: `embed_scale` may be a buffer without data while the model is on the meta device.
    for attribute in ("scalar_embed_scale", "embed_scale"):
        value = getattr(module, attribute, None)
        if isinstance(value, (int, float)):
            return float(value)
    return None
