"""What is stored of a coded table: tensors of bytes, whose shapes follow from a few numbers (docs/format.md)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projclust.coding.codebooks import NONE
from projclust.coding.layout import ClassLayout, class_layouts
from projclust.coding.packing import bits_float, float_bits, pack_nibbles, unpack_nibbles
from projclust.errors import ProjclustError
from projclust.shapes import CodedShape

# Deviations are stored in so many steps of an octave below their class's largest.
STEPS_PER_OCTAVE = 16
# What is added to numbers of 4 or 8 bits, so that the stored codes are numbers from 0 on.
_OFFSET = {4: 8, 8: 128}


@dataclass(frozen=True)
class SideTables:
    """What the rows of a coded table are decoded with, as numbers."""

    kinds: Tensor  # (C, r) uint8
    deviations: Tensor  # (C, r) float32, what a coordinate's decoded value is multiplied by; zero without a code
    means: Tensor | None  # (C, d) float32
    decoders: Tensor  # (G, r, d) float32

    def layouts(self) -> list[ClassLayout]:
        """The layout of the rows of each class."""
        return class_layouts(self.kinds)

    def shape(self, rows: list[int], decoder_bits: int) -> CodedShape:
        """The sizes of a table that has so many rows in each class."""
        decoders, rank, d = self.decoders.shape
        code_bytes = sum(count * layout.row_bytes for count, layout in zip(rows, self.layouts(), strict=True))
        sizes = {"rank": rank, "decoders": decoders, "decoder_bits": decoder_bits, "code_bytes": code_bytes}
        coded = int((self.kinds != NONE).sum())
        return CodedShape(sum(rows), d, len(rows), affine=self.means is not None, coded=coded, **sizes)


class _Integers(NamedTuple):
    """Numbers (..., m) as integers of so many bits, from 0 on, and the scales (...,) that those are multiplied by."""

    codes: Tensor
    scales: Tensor
    bits: int

    def read(self) -> Tensor:
        """(..., m) float32, the numbers they stand for."""
        return (self.codes.float() - _OFFSET[self.bits]) * self.scales.unsqueeze(-1)


class _Codes(NamedTuple):
    """Numbers of `SideTables` as they are stored, before any is packed."""

    kinds: Tensor  # (C, r) uint8
    steps: Tensor  # (C, r) the deviations, in steps below the gain
    gains: Tensor  # (C,) float32, rounded
    decoders: _Integers  # (G, r, d)
    means: _Integers | None  # (C, d)

    def read(self) -> SideTables:
        """The numbers they stand for."""
        deviations = torch.exp2(-self.steps.float() / STEPS_PER_OCTAVE) * self.gains.unsqueeze(1)
        deviations = deviations.masked_fill(self.kinds == NONE, 0)
        means = None if self.means is None else self.means.read()
        return SideTables(kinds=self.kinds, deviations=deviations, means=means, decoders=self.decoders.read())


def _codes_of(tables: SideTables, decoder_bits: int) -> _Codes:
    gains = tables.deviations.amax(1)  # (C,)
    steps = -(tables.deviations / gains.clamp(min=1e-38).unsqueeze(1)).clamp(min=1e-30).log2() * STEPS_PER_OCTAVE
    return _Codes(
        kinds=tables.kinds,
        steps=steps.round().clamp(0, 255).to(torch.uint8),
        gains=gains.to(torch.bfloat16).float(),
        decoders=_rounded(tables.decoders, decoder_bits, torch.float16),
        means=None if tables.means is None else _rounded(tables.means, 8, torch.bfloat16),
    )


def as_stored(tables: SideTables, decoder_bits: int) -> SideTables:
    """What `read_side_tables` makes of `store_side_tables`, by operations whose shapes do not depend on data."""
    return _codes_of(tables, decoder_bits).read()


def store_side_tables(tables: SideTables, decoder_bits: int) -> tuple[dict[str, Tensor], SideTables]:
    """The bytes of `SideTables`, all but the codes and class ids, and the numbers that they stand for.

    Numbers that were read from bytes come out as the same bytes.
    """
    codes = _codes_of(tables, decoder_bits)
    stored = {
        "kinds": pack_nibbles(tables.kinds),
        "deviations": codes.steps[tables.kinds != NONE],
        "gains": float_bits(codes.gains, torch.bfloat16),
        "decoder": pack_nibbles(codes.decoders.codes) if decoder_bits == 4 else codes.decoders.codes,
        "decoder_scales": float_bits(codes.decoders.scales, torch.float16),
    }
    if codes.means is not None:
        stored |= {"means": codes.means.codes, "mean_scales": float_bits(codes.means.scales, torch.bfloat16)}
    return stored, codes.read()


def checked_kinds(stored: dict[str, Tensor], rank: int) -> Tensor:
    """(C, r) uint8: the kind of code of every coordinate, once it is known that the other numbers can be read.

    Raises:
        ProjclustError: a number of deviations that does not fit them; scales that give NaN or infinity.
    """
    # By each the largest number that they multiply.
    scales = {
        "gains": (torch.bfloat16, 1),
        "mean_scales": (torch.bfloat16, 128),
        "decoder_scales": (torch.float16, 128),
    }
    for name, (dtype, largest) in scales.items():
        if name in stored and not bool((largest * bits_float(stored[name], dtype)).isfinite().all()):
            raise ProjclustError(f"the embedding's {name} have NaN or infinite entries")
    return _kinds(stored, rank)


def _kinds(stored: dict[str, Tensor], rank: int) -> Tensor:
    kinds = unpack_nibbles(stored["kinds"], rank)
    # A compiler cannot look at data; what it follows was read before.
    if not torch.compiler.is_compiling() and int((kinds != NONE).sum()) != len(stored["deviations"]):
        raise ProjclustError("there is not one deviation for each coordinate with a code")
    return kinds


def read_side_tables(stored: dict[str, Tensor], rank: int, d: int, decoder_bits: int) -> SideTables:
    """The numbers in stored tensors, all but the codes and class ids."""
    kinds = _kinds(stored, rank)  # (C, r)
    coded = kinds != NONE
    place = coded.flatten().cumsum(0).view(coded.shape) * coded  # from 1 on
    decoders = unpack_nibbles(stored["decoder"], d) if decoder_bits == 4 else stored["decoder"]
    means = None
    if "means" in stored:
        means = _Integers(stored["means"], bits_float(stored["mean_scales"], torch.bfloat16), 8)
    return _Codes(
        kinds,
        steps=F.pad(stored["deviations"].float(), (1, 0))[place],
        gains=bits_float(stored["gains"], torch.bfloat16),
        decoders=_Integers(decoders, bits_float(stored["decoder_scales"], torch.float16), decoder_bits),
        means=means,
    ).read()


def scaled(stored: dict[str, Tensor], exponent: int) -> dict[str, Tensor]:
    """The stored tensors of a table times two to a power: exact but for the range of bfloat16."""
    names = [name for name in ("gains", "mean_scales") if name in stored]
    floats = {name: bits_float(stored[name], torch.bfloat16).double() * 2.0**exponent for name in names}
    return stored | {name: float_bits(values, torch.bfloat16) for name, values in floats.items()}


def stored_means(means: Tensor) -> Tensor:
    """(C, d) float32 means as they will be read."""
    return _rounded(means, 8, torch.bfloat16).read()


def stored_decoders(decoders: Tensor, bits: int) -> Tensor:
    """(G, r, d) float32 decoders as they will be read; with 4 bits, each row is cut off where that serves it best."""
    rows = decoders.float()
    if bits == 8:
        return _rounded(rows, bits, torch.float16).read()
    largest = rows.abs().amax(-1, keepdim=True)
    best, best_error = rows, torch.full_like(largest, float("inf"))
    for fraction in torch.linspace(1, 0.5, 21).tolist():
        read = _rounded(rows.clamp(-fraction * largest, fraction * largest), bits, torch.float16).read()
        error = (read - rows).square().sum(-1, keepdim=True)
        best = torch.where(error < best_error, read, best)
        best_error = torch.minimum(error, best_error)
    return best


def decoder_of_each(classes: int, decoders: int) -> list[int]:
    """The number of the decoder that each class uses."""
    return [number * decoders // classes for number in range(classes)]


def read_classes(stored: dict[str, Tensor], n: int, classes: int) -> Tensor:
    """(n,) the class of every row, int64."""
    if classes == 1:
        return torch.zeros(n, dtype=torch.int64, device=stored["weight"].device)
    ids = unpack_nibbles(stored["classes"], n) if classes <= 16 else stored["classes"]
    if n and not torch.compiler.is_compiling() and int(ids.max()) >= classes:
        raise ProjclustError(f"a class id lies outside 0 .. {classes - 1}")
    return ids.long()


def store_classes(ids: Tensor, classes: int) -> dict[str, Tensor]:
    """The bytes of class ids, (n,): none where there is one class only."""
    if classes == 1:
        return {}
    return {"classes": pack_nibbles(ids) if classes <= 16 else ids.to(torch.uint8)}


def _rounded(values: Tensor, bits: int, scale_dtype: torch.dtype) -> _Integers:
    """Numbers (..., m) in so many bits: the largest of each row takes the largest code."""
    offset = _OFFSET[bits]
    scales = (values.abs().amax(-1) / (offset - 1)).to(scale_dtype).float()
    codes = (values / scales.clamp(min=1e-38).unsqueeze(-1)).round() + offset
    return _Integers(codes.clamp(1, 2 * offset - 1).to(torch.uint8), scales, bits)
