"""Tables whose rows are packed codes, and the lookup and tied output layer that read them."""

import warnings
from operator import mul
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from projclust.coding.codebooks import NONE, STATES
from projclust.coding.decode import Windows, entries, unit_coordinates, windows_of
from projclust.coding.layout import ClassLayout, row_starts
from projclust.coding.packing import unpack_nibbles
from projclust.coding.stored import (
    CodedShape,
    SideTables,
    as_stored,
    read_classes,
    read_side_tables,
    store_side_tables,
)
from projclust.errors import ProjclustError

from .factorized import in_compiler
from .grouped import grouped_product
from .lookup import EmbeddingLookup
from .table import CompressedTable

# Rows of the table decoded at once, and positions whose logits are put in vocabulary order at once.
_BLOCK_ROWS, _BLOCK_POSITIONS = 2048, 256


class Addresses(NamedTuple):
    """What follows from the stored bytes of a table and is derived once.

    Attributes:
        starts: (n,) the first byte of each row's code.
        classes: (n,) uint8.
        windows: of the rows of each class.
        layouts: the same, class by class.
        rows: of each class.
        of: the state of the bytes this was derived from.
    """

    starts: Tensor
    classes: Tensor
    windows: Windows
    layouts: list[ClassLayout]
    rows: list[int]
    of: tuple[Any, ...]


class CodedTable(CompressedTable):
    """A table of n rows in d dimensions, each row a short string of bits: ``row = mean + coordinates @ decoder``.

    A row belongs to a class, which says how many bits each of its coordinates has; what is decoded from them is
    multiplied by the coordinate's deviation in that class. In memory lie the bytes of the file, as uint8 buffers of the
    primary table (see docs/format.md): half() and to(dtype) change the dtype of what is decoded and, while nothing of
    it is trained, no byte. Secondary tables (a tied head) hold nothing and read the primary.

    The buffer of codes is called `weight` on purpose: software that does not know the format stops at its shape instead
    of going on with a random table.

    After `unfreeze` three float parameters take the place of everything stored beside the codes: what is read are their
    values rounded to what can be stored, and gradients pass the rounding as if it were not there (Bengio et al.,
    "Estimating or propagating gradients through stochastic neurons", 2013). So training sees what saving keeps, and
    a checkpoint's size never changes.

    Attributes:
        shape: the sizes of everything.
        latent_deviations, latent_means, latent_decoders: (C, r), (C, d) and (G, r, d) after `unfreeze`; else None. Of
            a table without means there are none of them. Deviations, of very different sizes, are there as logarithms
            to base 2: a step of an optimizer changes all by the same factor.
    """

    weight: Tensor
    kinds: Tensor
    _like: Tensor
    latent_deviations: nn.Parameter | None
    latent_means: nn.Parameter | None
    latent_decoders: nn.Parameter | None

    def __init__(
        self,
        shape: CodedShape,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        primary: "CodedTable | None",
    ) -> None:
        super().__init__()
        self.shape = shape
        # A list, so that the primary does not become a submodule of its secondary.
        self._primary = [] if primary is None else [primary]
        self._addresses: Addresses | None = None
        self._warns = True
        if primary is None:
            for name, size in shape.stored.items():
                self.register_buffer(name, torch.empty(size, dtype=torch.uint8, device=device))
        # Without data: it has the dtype of what is decoded, which half() and the like change.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        for name in _LATENT:
            self.register_parameter(name, None)

    @property
    def primary(self) -> "CodedTable":
        """The table that holds the bytes: this one, or the one it is tied to."""
        return self._primary[0] if self._primary else self

    def __getattr__(self, name: str) -> Any:
        # What reads the weight of a tied layer (its device, whether it was loaded) finds that of the primary.
        if name == "weight" and self.__dict__.get("_primary"):
            return self.primary.weight
        return super().__getattr__(name)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is decoded."""
        return self._like.dtype

    def prepare(self) -> None:
        """Derive the addresses."""
        self.addresses()

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of it is trained."""
        return self.primary.latent_decoders is None

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored bytes by name; after training those of what was trained.

        Raises:
            ProjclustError: what was trained is no number any more.
        """
        owner = self.primary
        bytes_of = {name: getattr(owner, name) for name in self.shape.stored}
        return bytes_of if owner.is_frozen else bytes_of | owner._latent_bytes()

    @torch.no_grad()
    def set_stored(self, stored: dict[str, Tensor]) -> None:
        """Fill the table with the bytes of `shape.stored`."""
        for name in self.shape.stored:
            getattr(self, name).copy_(stored[name])
        self._forget()

    @torch.no_grad()
    def unfreeze(self) -> None:
        """Give the primary float parameters for all but the codes; before the optimizer is made."""
        owner = self.primary
        if owner.is_frozen:
            side = owner._read_side_tables()
            deviations = torch.where(side.kinds != NONE, side.deviations, 1.0).log2()
            for name, values in zip(_LATENT, (deviations, side.means, side.decoders), strict=True):
                setattr(owner, name, None if values is None else nn.Parameter(values))

    def requires_grad_(self, requires_grad: bool = True) -> "CodedTable":
        """As `nn.Module.requires_grad_`; of a frozen table, which has no parameters, True first makes them."""
        if requires_grad and self.primary is self:
            self.unfreeze()
        self._warns = False  # whoever says it knows
        super().requires_grad_(requires_grad)
        return self

    @torch.no_grad()
    def freeze(self) -> None:
        """Undo `unfreeze`: what was trained becomes the stored bytes."""
        owner = self.primary
        if not owner.is_frozen:
            stored = owner._latent_bytes()
            for name in _LATENT:
                setattr(owner, name, None)
            owner.set_stored(owner.stored | stored)

    def side_tables(self) -> SideTables:
        """What rows are decoded with; differentiable after `unfreeze`."""
        owner = self.primary
        if owner.is_frozen:
            with torch.no_grad():
                return owner._read_side_tables()
        latent = owner._latent_tables()
        with torch.no_grad():
            read = as_stored(latent, owner.shape.decoder_bits)
        return SideTables(
            read.kinds,
            _straight_through(latent.deviations, read.deviations),
            None if latent.means is None or read.means is None else _straight_through(latent.means, read.means),
            _straight_through(latent.decoders, read.decoders),
        )

    def addresses(self) -> Addresses:
        """Where everything lies in the codes; derived anew when the bytes it follows from were changed or moved.

        Raises:
            ProjclustError: the bytes contradict each other.
        """
        owner = self.primary
        known = owner._addresses
        # A compiler cannot look at the state of a tensor, nor derive this: it takes what is there.
        if known is not None and (torch.compiler.is_compiling() or known.of == owner._state()):
            return known
        # As ordinary tensors, also under inference_mode: training may come next.
        with torch.inference_mode(False), torch.no_grad():
            shape, stored = owner.shape, {name: getattr(owner, name) for name in owner.shape.stored}
            side = read_side_tables(stored, shape.rank, shape.d, shape.decoder_bits)
            for name, part in (
                ("gains", side.deviations),
                ("mean_scales", side.means),
                ("decoder_scales", side.decoders),
            ):
                if part is not None and not bool(part.isfinite().all()):
                    raise ProjclustError(f"the embedding's {name} have NaN or infinite entries")
            classes = read_classes(stored, shape.n, shape.classes)
            layouts = side.layouts()
            rows = torch.bincount(classes, minlength=shape.classes).tolist()
            row_bytes = [layout.row_bytes for layout in layouts]
            if sum(map(mul, rows, row_bytes)) != shape.code_bytes:
                raise ProjclustError("the codes have another length than their classes and kinds add up to")
            device = owner.weight.device
            owner._addresses = Addresses(
                row_starts(classes, row_bytes),
                classes.to(torch.uint8),
                windows_of(layouts, shape.rank, device),
                layouts,
                rows,
                owner._state(),
            )
        return owner._addresses

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """(n, d) the table itself."""
        ids = torch.arange(self.shape.n, device=self.primary.weight.device)
        return torch.cat([self.decode(block) for block in ids.split(_BLOCK_ROWS)])

    def decode(self, ids: Tensor) -> Tensor:
        """(N, d) rows of the table, in the dtype of the embedding."""
        addresses, shape = self.addresses(), self.shape
        # By F.embedding, whose compiled form checks the range of the ids, which that of index_select does not.
        starts = F.embedding(ids, addresses.starts.to(ids.device).unsqueeze(1)).squeeze(1)
        classes = addresses.classes.to(ids.device).index_select(0, ids).long()
        side = self.side_tables()
        codes, windows = (
            self.primary.weight.to(ids.device),
            Windows(*(part.to(ids.device) for part in addresses.windows)),
        )
        coordinates = unit_coordinates(codes, windows, starts, classes)
        coordinates = coordinates * side.deviations.to(ids.device).index_select(0, classes)
        decoders = side.decoders.to(ids.device)
        if shape.decoders == 1:
            rows = coordinates @ decoders[0]
        else:
            rows = grouped_product(coordinates, classes * shape.decoders // shape.classes, decoders)
        if side.means is not None:
            rows = rows + side.means.to(ids.device).index_select(0, classes)
        return rows.to(self.dtype)

    def train(self, mode: bool = True) -> "CodedTable":
        """As `nn.Module.train`; says that codes alone do not learn."""
        if self._warns and mode and not self.training and self.primary is self and self.is_frozen:
            warnings.warn(
                "the coded embedding stays as it is in training; projclust.unfreeze(model), called before the "
                "optimizer is made, lets its means, deviations and decoder learn",
                stacklevel=2,
            )
        super().train(mode)
        return self

    def _read_side_tables(self) -> SideTables:
        shape = self.shape
        return read_side_tables(self.stored, shape.rank, shape.d, shape.decoder_bits)

    def _latent_bytes(self) -> dict[str, Tensor]:
        latent = self._latent_tables()
        values = (latent.deviations, latent.means, latent.decoders)
        if not all(own is None or bool(own.isfinite().all()) for own in values):
            raise ProjclustError("training has made the embedding NaN or infinite")
        return store_side_tables(latent, self.shape.decoder_bits)[0]

    def _latent_tables(self) -> SideTables:
        """What is trained, before it is rounded to what is stored."""
        assert self.latent_deviations is not None
        assert self.latent_decoders is not None
        kinds, means = unpack_nibbles(self.kinds, self.shape.rank), self.latent_means
        deviations = torch.exp2(self.latent_deviations.float()) * (kinds != NONE)
        return SideTables(kinds, deviations, None if means is None else means.float(), self.latent_decoders.float())

    def _state(self) -> tuple[Any, ...]:
        """Changes whenever the bytes change or move, but for changes in place of inference tensors."""
        parts = [getattr(self, name) for name in ("classes", "kinds") if name in self.shape.stored]
        return tuple((p.data_ptr(), -1 if p.is_inference() else p._version, p.device) for p in parts)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _LATENT:
            destination.pop(prefix + name, None)
        if self.primary is self and not self.is_frozen:
            destination |= {prefix + name: values for name, values in self._latent_bytes().items()}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        trained = {name: getattr(self, name) for name in _LATENT}
        for name in _LATENT:  # they are no part of what is stored
            setattr(self, name, None)
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()
        if trained["latent_decoders"] is not None:
            self.unfreeze()
            for name, parameter in trained.items():
                if parameter is not None:  # the same ones, which an optimizer may hold
                    with torch.no_grad():
                        parameter.copy_(getattr(self, name))
                    setattr(self, name, parameter)

    def _apply(self, fn: Any, recurse: bool = True) -> "CodedTable":
        super()._apply(fn, recurse)
        self._forget()
        return self

    def _forget(self) -> None:
        derived, self._addresses = self._addresses is not None, None
        # Now rather than on first use, so that a compiled forward finds it.
        if derived and not self.primary.weight.is_meta:
            self.addresses()

    def _shape_text(self) -> str:
        shape = self.shape
        bits = 8 * shape.bytes / (shape.n * shape.d)
        return f"{shape.classes} classes, rank {shape.rank}, {bits:.3f} bits per weight"


_LATENT = ("latent_deviations", "latent_means", "latent_decoders")


def _straight_through(latent: Tensor, read: Tensor) -> Tensor:
    """The values of `read` with the gradient of `latent`."""
    return read + (latent - latent.detach())  # in this order, to the last bit


class CodedEmbedding(EmbeddingLookup, CodedTable):
    """Drop-in for `nn.Embedding` over a coded table.

    Args:
        shape: of the table.
        padding_idx: as in `nn.Embedding`: this token gives no gradient.
        scale: factor on the output, rounded to its dtype first (Gemma, BART); None for no scaling.
        primary: the embedding whose table this one reads (T5, BART).

    Raises:
        IndexError: in forward, when an id is outside the vocabulary.
    """

    def __init__(
        self,
        shape: CodedShape,
        padding_idx: int | None = None,
        scale: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: CodedTable | None = None,
    ) -> None:
        CodedTable.__init__(self, shape, dtype, device, primary)
        self.set_lookup(shape.n, shape.d, padding_idx, scale)

    def _decode_distinct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        distinct, inverse = ids.unique(return_inverse=True)
        return self._decode_static(distinct), inverse

    def _decode_static(self, ids: Tensor) -> Tensor:
        rows = self.decode(ids)
        if self.padding_idx is not None and torch.is_grad_enabled():
            rows = self._without_padding_gradient(rows, ids == self.padding_idx)
        return rows

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._shape_text()}{self._lookup_text()}"


class CodedLMHead(CodedTable):
    """Drop-in for the `nn.Linear` that a language model ties to its embedding.

    ``logits_c = (h D^T) coordinates_c^T + h mean_c`` for the rows of each class, decoded in blocks, then put in
    vocabulary order, plus bias. The table is never there.

    Args:
        shape: of the table.
        bias: whether there is a bias of n entries.
        primary: the embedding whose table this head reads.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: CodedShape,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: CodedTable | None = None,
    ) -> None:
        super().__init__(shape, dtype, device, primary)
        self.in_features, self.out_features = shape.d, shape.n
        self._head_order: _HeadOrder | None = None
        unset = nn.Parameter(torch.empty(shape.n, dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", unset)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of shape ``hidden.shape[:-1] + (n,)``."""
        side, device = self.side_tables(), hidden.device
        inner = F.linear(hidden, side.decoders.flatten(0, 1).to(hidden))  # (..., G*r)
        if side.means is None:
            shift = hidden.new_zeros(*hidden.shape[:-1], self.shape.classes)
        else:
            shift = F.linear(hidden, side.means.to(hidden))  # (..., C)
        flat_inner, flat_shift = inner.reshape(-1, inner.shape[-1]), shift.reshape(-1, shift.shape[-1])
        make = _plain_logits if in_compiler() else _CodedLogits.apply
        codes, order = self.primary.weight.to(device), self._order(device)
        logits: Tensor = make(flat_inner, flat_shift, side.deviations.to(device), codes, order)
        if self.bias is not None:
            logits = logits + self.bias.to(logits.dtype)
        return logits.view(*hidden.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {self._shape_text()}, bias={self.bias is not None}"

    def _order(self, device: torch.device) -> "_HeadOrder":
        """Where the rows of the table lie among the logits, class by class."""
        addresses = self.addresses()
        known = self._head_order
        if known is not None and known.starts is addresses.starts and known.position.device == device:
            return known
        with torch.inference_mode(False), torch.no_grad():
            rows = addresses.classes.long().argsort(stable=True)
            position = torch.empty_like(rows)
            position[rows] = torch.arange(len(rows), device=rows.device)
            blocks, first_row, first_byte = [], 0, 0
            for number, (count, layout) in enumerate(zip(addresses.rows, addresses.layouts, strict=True)):
                group = number * self.shape.decoders // self.shape.classes
                inner = (layout.coded + group * self.shape.rank).to(device)
                coded, byte = layout.coded.to(device), layout.byte.to(device)
                shift = layout.shift.int().unsqueeze(1).to(device)
                entry = (layout.table.int() * STATES).unsqueeze(1).to(device)
                for start in range(0, count, _BLOCK_ROWS):
                    block_rows, first = min(_BLOCK_ROWS, count - start), first_byte + start * layout.row_bytes
                    where = number, first_row + start, block_rows, first, layout.row_bytes
                    blocks.append(_Block(*where, inner, coded, byte, shift, entry))
                first_row, first_byte = first_row + count, first_byte + count * layout.row_bytes
            values = addresses.windows.values.to(device)
            order = _HeadOrder(position.to(device), rows.to(device), blocks, values, addresses.starts)
            if not in_compiler():  # an exported program changes no module
                self._head_order = order
        return order


class _Block(NamedTuple):
    """Rows of one class that are decoded together.

    Attributes:
        number: of the class.
        first_row, rows: among the rows in the order of the classes.
        first_byte, row_bytes: where their codes lie.
        inner: (m,) the coordinates with codes, among those of all decoders.
        coded: (m,) the same, among those of one.
        byte: (m,) as in `Windows`.
        shift, entry: (m, 1) likewise.
    """

    number: int
    first_row: int
    rows: int
    first_byte: int
    row_bytes: int
    inner: Tensor
    coded: Tensor
    byte: Tensor
    shift: Tensor
    entry: Tensor

    def unit_coordinates(self, codes: Tensor, values: Tensor) -> Tensor:
        """(m, rows) in units of their deviations."""
        length = self.rows * self.row_bytes
        own = codes[self.first_byte : self.first_byte + length].view(self.rows, self.row_bytes)
        # Bytes first: then whole rows are selected, many times faster on a CPU than entries of each row.
        pairs = own.t().int() << 8  # (row_bytes, rows)
        pairs[:-1] |= own.t()[1:]
        places = pairs.index_select(0, self.byte)
        places >>= self.shift
        places &= STATES - 1
        places += self.entry
        return entries(values, places)

    def coordinates(self, codes: Tensor, values: Tensor, deviations: Tensor) -> Tensor:
        """(m, rows) float32 coordinates of the rows."""
        return self.unit_coordinates(codes, values) * deviations[self.number, self.coded].unsqueeze(1)


class _HeadOrder(NamedTuple):
    """The rows of the table class by class.

    Attributes:
        position: (n,) vocabulary row i is row ``position[i]`` of the classes'.
        rows: (n,) the inverse.
        blocks: of all rows.
        values: (tables * 256,) that codes are decoded by.
        starts: those of the addresses that this was derived from.
    """

    position: Tensor
    rows: Tensor
    blocks: list[_Block]
    values: Tensor
    starts: Tensor


def _plain_logits(inner: Tensor, shift: Tensor, deviations: Tensor, codes: Tensor, order: _HeadOrder) -> Tensor:
    """Logits by operations that a compiler can follow."""
    parts = []
    for block in order.blocks:
        coordinates = block.coordinates(codes, order.values, deviations).to(inner.dtype)
        part = inner.index_select(1, block.inner) @ coordinates
        parts.append(part + shift[:, block.number : block.number + 1])
    return torch.cat(parts, 1).index_select(1, order.position)


class _CodedLogits(torch.autograd.Function):
    """Logits of N positions: a block of rows is decoded, used and forgotten, in either direction.

    Inputs: inner (N, G*r); shift (N, C); deviations (C, r) float32; codes (B,) uint8. Output: (N, n).
    """

    @staticmethod
    def forward(inner: Tensor, shift: Tensor, deviations: Tensor, codes: Tensor, order: _HeadOrder) -> Tensor:
        logits = inner.new_empty(len(inner), len(order.rows))
        for block in order.blocks:
            coordinates = block.coordinates(codes, order.values, deviations).to(inner.dtype)
            part = logits[:, block.first_row : block.first_row + block.rows]
            start = shift[:, block.number : block.number + 1]
            torch.addmm(start, inner.index_select(1, block.inner), coordinates, out=part)
        for positions in logits.split(_BLOCK_POSITIONS):
            positions.copy_(positions.index_select(1, order.position))
        return logits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        inner, _, deviations, codes, ctx.order = inputs
        ctx.save_for_backward(inner, deviations, codes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inner, deviations, codes = ctx.saved_tensors
        order: _HeadOrder = ctx.order
        wants_inner, wants_shift, wants_deviations = ctx.needs_input_grad[:3]
        # Sums over all blocks, of what may be in half precision.
        exact = torch.promote_types(inner.dtype, torch.float32)
        to_inner = torch.zeros_like(inner, dtype=exact)
        to_shift = to_inner.new_zeros(len(inner), len(deviations))
        to_deviations = torch.zeros_like(deviations)
        grouped = gradient.index_select(1, order.rows)
        for block in order.blocks:
            part = grouped[:, block.first_row : block.first_row + block.rows]
            unit = block.unit_coordinates(codes, order.values)
            own = deviations[block.number, block.coded].unsqueeze(1)
            if wants_inner:
                to_inner.index_add_(1, block.inner, (part @ (unit * own).t().to(part.dtype)).to(exact))
            if wants_shift:
                to_shift[:, block.number] += part.sum(1, dtype=exact)
            if wants_deviations:
                found = inner.index_select(1, block.inner).t() @ part  # (m, rows)
                to_deviations[block.number].index_add_(0, block.coded, (found.float() * unit).sum(1))
        return (
            to_inner.to(inner.dtype) if wants_inner else None,
            to_shift.to(inner.dtype) if wants_shift else None,
            to_deviations if wants_deviations else None,
            None,
            None,
        )
