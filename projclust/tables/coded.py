"""Tables whose rows are packed codes, and the lookup that decodes the rows it needs."""

import warnings
from dataclasses import replace
from operator import mul
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projclust.coding import gpu_reading
from projclust.coding.codebooks import NONE
from projclust.coding.decode import Windows, unit_coordinates, windows_of
from projclust.coding.gpu import has_gpu_kernels
from projclust.coding.gpu_reading import GpuReading, gpu_reading_of
from projclust.coding.layout import ClassLayout, class_layouts, row_starts
from projclust.coding.packing import unpack_nibbles
from projclust.coding.portable import in_onnx_export, places
from projclust.coding.reading import Reading, read_rows, reading_of
from projclust.coding.stored import (
    SideTables,
    as_stored,
    checked_kinds,
    read_classes,
    read_side_tables,
    store_classes,
    store_side_tables,
)
from projclust.coding.trellis import has_kernels
from projclust.errors import ProjclustError
from projclust.shapes import CodedShape
from projclust.tables.grouped import grouped_product
from projclust.tables.lookup import EmbeddingLookup
from projclust.tables.stand_in import Buffers, DenseWeight, nan_table
from projclust.tables.table import CompressedTable, is_plain, state_of

# The rows of a table that are decoded at once.
BLOCK_ROWS = 2048
_LATENT = ("latent_deviations", "latent_means", "latent_decoders")


class Addresses(NamedTuple):
    """What follows from the stored bytes of a table and is derived once."""

    starts: Tensor  # (n,) the first byte of each row's code
    classes: Tensor  # (n,) uint8
    windows: Windows
    layouts: list[ClassLayout]
    rows: list[int]  # the number of rows of each class


class CodedTable(CompressedTable[CodedShape]):
    """A table of n rows in d dimensions, each row a short string of bits: ``row = mean + coordinates @ decoder``.

    A row belongs to a class, which says how many bits each of its coordinates has, and what those are multiplied by.

    In memory lie the bytes of the file, as uint8 buffers of the primary table (see docs/format.md): half() and
    to(dtype) change the dtype of what is decoded and, while nothing of it is trained, no byte. The buffer of codes is
    called `weight` on purpose: software that does not know the format stops at its shape instead of going on with a
    random table. Secondary tables (a tied head) hold nothing and read the primary. Once the table is filled, the
    attribute `weight` of either tells what a dense weight would, and `codes` are the bytes.

    After `unfreeze` three float parameters take the place of everything stored beside the codes: what is read are their
    values rounded to what can be stored, and gradients pass the rounding as if it were not there (Bengio et al.,
    "Estimating or propagating gradients through stochastic neurons", 2013). So training sees what saving keeps.
    Deviations, of very different sizes, are trained as logarithms to base 2: an optimizer's step changes all by the
    same factor.
    """

    classes: Tensor
    kinds: Tensor
    _like: Tensor
    _is_filled: bool
    _stand_in: DenseWeight | None
    latent_deviations: nn.Parameter | None  # (C, r)
    latent_means: nn.Parameter | None  # (C, d)
    latent_decoders: nn.Parameter | None  # (G, r, d)
    _known_reading: tuple[list[Any], Reading | GpuReading] | None

    def _allocate(self, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        self._warns = True
        self._known_reading = self._stand_in = None
        self._is_filled = False
        if self.primary is self:
            self._buffers = Buffers(self._buffers)
            for name, size in self.shape.stored.items():
                self.register_buffer(name, torch.empty(size, dtype=torch.uint8, device=device))
        # Without data: it has the dtype of what is decoded, which half() and the like change.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        for name in _LATENT:
            self.register_parameter(name, None)

    def __getattr__(self, name: str) -> Any:
        # Until the bytes are there, whoever brings them looks for them under this name.
        if name == "weight" and "_primary" in self.__dict__:
            owner = self.primary
            if owner._is_filled and not (owner is self and owner.codes.is_meta):
                return owner._dense_stand_in()
            if owner is not self:
                return owner.codes
        return super().__getattr__(name)

    @property
    def codes(self) -> Tensor:
        """(code_bytes,) uint8: the codes of all rows."""
        codes = self.primary._buffers["weight"]
        assert codes is not None
        return codes

    def _dense_stand_in(self) -> Tensor:
        known, codes, sizes = self._stand_in, self.codes, (self.shape.height, self.shape.d)
        if torch.compiler.is_compiling():  # which follows no class of tensors that refuses to be looked into
            return nan_table(*sizes, dtype=self.dtype, device=codes.device)
        if known is None or (*known.shape, known.dtype, known.device) != (*sizes, self.dtype, codes.device):
            known = self._stand_in = DenseWeight.of(*sizes, dtype=self.dtype, device=codes.device)
        return known

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the decoded rows."""
        return self._like.dtype

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of it is trained."""
        return self.primary.latent_decoders is None

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored bytes by name; after training those of what was trained."""
        owner = self.primary
        return owner._buffers_by_name() if owner.is_frozen else owner._buffers_by_name() | owner._latent_bytes()

    @torch.no_grad()
    def set_stored(self, stored: dict[str, Tensor]) -> None:
        """Fill the table with the bytes of `shape.stored`."""
        for name, buffer in self._buffers_by_name().items():
            buffer.copy_(stored[name])
        self._is_filled = True
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
            stored = owner.stored
            for name in _LATENT:
                setattr(owner, name, None)
            owner.set_stored(stored)

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
            kinds=read.kinds,
            deviations=_straight_through(latent.deviations, read.deviations),
            means=None if latent.means is None or read.means is None else _straight_through(latent.means, read.means),
            decoders=_straight_through(latent.decoders, read.decoders),
        )

    def addresses(self) -> Addresses:
        """Where everything lies in the codes; derived anew when the bytes it follows from were changed or moved."""
        return self._derived()

    def reading(self) -> Reading | GpuReading | None:
        """What compiled loops, or kernels on a GPU, read of the table; None where it is trained, or there are none."""
        owner = self.primary
        on_gpu = has_gpu_kernels(owner.codes.device)
        if not owner.is_frozen or not (on_gpu or (owner.codes.is_cpu and has_kernels())):
            return None
        state = state_of(list(owner._buffers.values()))
        if owner._known_reading is None or owner._known_reading[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                own, side = self.addresses(), owner._read_side_tables()
                parts = {"starts": own.starts, "classes": own.classes, "values": own.windows.values}
                reading: Reading | GpuReading
                if on_gpu:
                    reading = gpu_reading_of(owner.codes, side, own.layouts, **parts)
                else:
                    reading = reading_of(owner._buffers_by_name(), own.layouts, side.deviations, **parts)
            owner._known_reading = state, reading
        return owner._known_reading[1]

    def _forget(self) -> None:
        self._known_reading = None
        super()._forget()

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other bytes to read.
        return {**self.__dict__, "_known_reading": None, "_stand_in": None}

    def _ids(self) -> list[Tensor]:
        return [getattr(self.primary, name) for name in ("classes", "kinds") if name in self.shape.stored]

    def _derive(self) -> Addresses:
        shape = self.shape
        layouts = class_layouts(checked_kinds(self._buffers_by_name(), shape.rank))
        classes = read_classes(self._buffers_by_name(), shape.n, shape.classes)
        rows = torch.bincount(classes, minlength=shape.classes).tolist()
        row_bytes = [layout.row_bytes for layout in layouts]
        if sum(map(mul, rows, row_bytes)) != shape.code_bytes:
            raise ProjclustError("the codes have another length than their classes and kinds add up to")
        windows = windows_of(layouts, shape.rank, self.codes.device)
        self._is_filled = True
        return Addresses(row_starts(classes, row_bytes), classes.to(torch.uint8), windows, layouts, rows)

    @torch.no_grad()
    def compressed_rows(self) -> Tensor:
        """(n, d) the rows that have codes."""
        ids = torch.arange(self.shape.n, device=self.codes.device)
        rows = torch.empty(self.shape.n, self.shape.d, dtype=self.dtype, device=ids.device)
        for block, into in zip(ids.split(BLOCK_ROWS), rows.split(BLOCK_ROWS), strict=True):
            into.copy_(self.decode(block))
        return rows

    @torch.no_grad()
    def cut(self, n: int) -> None:
        """Keep the codes of the first n rows."""
        addresses = self.addresses()
        classes = addresses.classes.long()
        lengths = torch.tensor([layout.row_bytes for layout in addresses.layouts], device=classes.device)
        rows = classes.argsort(stable=True)  # as their codes lie
        codes = self._buffers_by_name()["weight"][(rows < n).repeat_interleave(lengths[classes[rows]])]
        self.weight = codes
        if "classes" in self.shape.stored:
            self.classes = store_classes(classes[:n], self.shape.classes)["classes"]
        self.shape = replace(self.shape, n=n, code_bytes=len(codes))
        self._forget()

    def decode(self, ids: Tensor) -> Tensor:
        """(N, d) rows of the table, in the dtype of the embedding."""
        addresses, shape = self.addresses(), self.shape
        if in_onnx_export():
            starts, classes = self._portable_addresses()
            addresses = addresses._replace(starts=starts, classes=classes)
        # By F.embedding, whose compiled form checks the range of the ids, which that of index_select does not.
        starts = F.embedding(ids, addresses.starts.to(ids.device).unsqueeze(1)).squeeze(1)
        classes = addresses.classes.to(ids.device).index_select(0, ids).long()
        side, codes = self.side_tables(), self.codes.to(ids.device)
        windows = Windows(*(part.to(ids.device) for part in addresses.windows))
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

    def _portable_addresses(self) -> tuple[Tensor, Tensor]:
        """Starts and classes of the rows as they follow from the stored bytes, which a graph then holds alone."""
        owner, own = self.primary, self.addresses()
        classes = read_classes(owner._buffers_by_name(), self.shape.n, self.shape.classes)
        return places(classes, [layout.row_bytes for layout in own.layouts], own.rows), classes

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

    def _buffers_by_name(self) -> dict[str, Tensor]:
        return {name: self._buffers[name] for name in self.shape.stored}  # type: ignore[misc]

    def _read_side_tables(self) -> SideTables:
        shape = self.shape
        return read_side_tables(self._buffers_by_name(), shape.rank, shape.d, shape.decoder_bits)

    def _latent_bytes(self) -> dict[str, Tensor]:
        latent = self._latent_tables()
        if not all(part is None or bool(part.isfinite().all()) for part in vars(latent).values()):
            raise ProjclustError("training has made the embedding NaN or infinite")
        return store_side_tables(latent, self.shape.decoder_bits)[0]

    def _latent_tables(self) -> SideTables:
        """What is trained, before it is rounded to what is stored."""
        assert self.latent_deviations is not None
        assert self.latent_decoders is not None
        kinds, means = unpack_nibbles(self.kinds, self.shape.rank), self.latent_means
        deviations = torch.exp2(self.latent_deviations.float()) * (kinds != NONE)
        floats = None if means is None else means.float()
        return SideTables(kinds=kinds, deviations=deviations, means=floats, decoders=self.latent_decoders.float())

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
        if trained["latent_decoders"] is not None:
            self.unfreeze()
            for name, parameter in trained.items():
                if parameter is not None:  # the same ones, which an optimizer may hold
                    with torch.no_grad():
                        parameter.copy_(getattr(self, name))
                    setattr(self, name, parameter)

    def table_text(self) -> str:
        shape = self.shape
        bits = 8 * shape.bytes / (shape.n * shape.d)
        return f"{shape.classes} classes, rank {shape.rank}, {bits:.3f} bits per weight"


class CodedEmbedding(EmbeddingLookup[CodedShape], CodedTable):
    """Drop-in for `nn.Embedding` over a coded table; docs/format.md describes what it stores.

    Ids of any shape give vectors of shape ``ids.shape + (d,)``. Nothing is trained before `unfreeze`.

    Args:
        shape: the sizes of everything stored, as `CodedMatrix` has them.
        padding_idx: as in `nn.Embedding`: this token gives no gradient.
        scale: factor on the output, rounded to its dtype first (Gemma, BART); None for no scaling.
        dtype: the dtype of the output; torch's default.
        device: where the bytes are.
        primary: the embedding whose table this one reads (T5, BART).

    Raises:
        IndexError: in forward, when an id is outside the vocabulary.

    Example::

        coded = fit_coded(table, budget=table.numel() // 4)  # two bits for each entry
        embedding = CodedEmbedding(coded.shape, padding_idx=0)
        embedding.set_stored(coded.stored)
        vectors = embedding(torch.tensor([[101, 7592, 102]]))  # (1, 3, d)
    """

    def _read(self, ids: Tensor) -> Tensor | None:
        if not is_plain(ids) or ids.dtype not in (torch.int64, torch.int32) or ids.device != self.codes.device:
            return None
        reading = self.reading()
        if isinstance(reading, GpuReading):
            return gpu_reading.read_rows(reading, ids, self.shape, self.dtype)
        return read_rows(reading, ids, self.shape) if reading is not None and self.dtype == torch.float32 else None


def _straight_through(latent: Tensor, read: Tensor) -> Tensor:
    """The values of `read` with the gradient of `latent`."""
    return read + (latent - latent.detach())  # in this order, to the last bit
