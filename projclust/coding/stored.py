"""What of a coded table is stored: tensors of bytes, whose shapes follow from a few numbers (docs/format.md)."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from projclust.errors import ProjclustError

from .codebooks import NONE
from .layout import ClassLayout, class_layouts
from .packing import bits_float, float_bits, pack_nibbles, unpack_nibbles

MOST_CLASSES = 256
# Deviations are stored as so many steps an octave below their class's largest.
STEPS_PER_OCTAVE = 16
# The most negative number that is stored, for each width of decoder entries; the codes are numbers from 0 on.
OFFSET = {4: 8, 8: 128}


@dataclass(frozen=True)
class CodedShape:
    """The sizes that describe a coded table of n rows and d columns.

    Attributes:
        classes: C, of rows; at most 256.
        rank: r, the coordinates a row can have.
        decoders: G, matrices that make rows of coordinates: 1 that all classes share, or C, one for each.
        decoder_bits: 4 or 8, of their entries.
        affine: whether classes have means.
        coded: coordinates with codes, summed over the classes.
        code_bytes: of the rows' codes.
    """

    n: int
    d: int
    classes: int
    rank: int
    decoders: int
    decoder_bits: int
    affine: bool
    coded: int
    code_bytes: int

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored tensors, all of uint8."""
        shapes = {
            "weight": (self.code_bytes,),
            "classes": (self._id_bytes,),
            "kinds": (self.classes, (self.rank + 1) // 2),
            "deviations": (self.coded,),
            "gains": (self.classes, 2),
            "means": (self.classes, self.d),
            "mean_scales": (self.classes, 2),
            "decoder": (self.decoders, self.rank, -(-self.d * self.decoder_bits // 8)),
            "decoder_scales": (self.decoders, self.rank, 2),
        }
        absent = ["classes"] * (self.classes == 1) + ["means", "mean_scales"] * (not self.affine)
        return {name: shape for name, shape in shapes.items() if name not in absent}

    @property
    def bytes(self) -> int:
        """Of everything stored."""
        return sum(map(prod, self.stored.values()))

    @property
    def _id_bytes(self) -> int:
        return (self.n + 1) // 2 if self.classes <= 16 else self.n


@dataclass(frozen=True)
class SideTables:
    """What the rows of a coded table are decoded with, as numbers.

    Attributes:
        kinds: (C, r) uint8.
        deviations: (C, r) float32, what a coordinate's decoded value is multiplied by; zero without a code.
        means: (C, d) float32, or None for classes without.
        decoders: (G, r, d) float32.
    """

    kinds: Tensor
    deviations: Tensor
    means: Tensor | None
    decoders: Tensor

    def layouts(self) -> list[ClassLayout]:
        """Of the rows of each class."""
        return class_layouts(self.kinds)


class _Codes(NamedTuple):
    """Numbers of `SideTables` as they are stored, before any is packed.

    Attributes:
        steps: (C, r) of the deviations.
        gains: (C,) float32, rounded.
        decoders, decoder_scales: (G, r, d) and (G, r).
        means, mean_scales: (C, d) and (C,), or None.
    """

    steps: Tensor
    gains: Tensor
    decoders: Tensor
    decoder_scales: Tensor
    means: Tensor | None
    mean_scales: Tensor | None

    def read(self, kinds: Tensor, decoder_bits: int) -> SideTables:
        """The numbers they stand for."""
        deviations = torch.exp2(-self.steps.float() / STEPS_PER_OCTAVE) * self.gains.unsqueeze(1)
        means = None
        if self.means is not None and self.mean_scales is not None:
            means = (self.means.float() - OFFSET[8]) * self.mean_scales.unsqueeze(1)
        decoders = (self.decoders.float() - OFFSET[decoder_bits]) * self.decoder_scales.unsqueeze(-1)
        return SideTables(kinds, deviations.masked_fill(kinds == NONE, 0), means, decoders)


def _codes_of(tables: SideTables, decoder_bits: int) -> _Codes:
    gains = tables.deviations.amax(1)  # (C,)
    steps = -(tables.deviations / gains.clamp(min=1e-38).unsqueeze(1)).clamp(min=1e-30).log2() * STEPS_PER_OCTAVE
    means = (None, None) if tables.means is None else _rounded(tables.means, 8, torch.bfloat16)
    return _Codes(
        steps.round().clamp(0, 255).to(torch.uint8),
        gains.to(torch.bfloat16).float(),
        *_rounded(tables.decoders, decoder_bits, torch.float16),
        *means,
    )


def as_stored(tables: SideTables, decoder_bits: int) -> SideTables:
    """What `read_side_tables` makes of `store_side_tables`, by operations whose shapes do not depend on data."""
    return _codes_of(tables, decoder_bits).read(tables.kinds, decoder_bits)


def store_side_tables(tables: SideTables, decoder_bits: int) -> tuple[dict[str, Tensor], SideTables]:
    """The bytes of `SideTables`, all but the codes and class ids, and the numbers that they stand for.

    Numbers that were read from bytes come out as the same bytes.
    """
    codes = _codes_of(tables, decoder_bits)
    stored = {
        "kinds": pack_nibbles(tables.kinds),
        "deviations": codes.steps[tables.kinds != NONE],
        "gains": float_bits(codes.gains, torch.bfloat16),
        "decoder": pack_nibbles(codes.decoders) if decoder_bits == 4 else codes.decoders,
        "decoder_scales": float_bits(codes.decoder_scales, torch.float16),
    }
    if codes.means is not None and codes.mean_scales is not None:
        stored |= {"means": codes.means, "mean_scales": float_bits(codes.mean_scales, torch.bfloat16)}
    return stored, codes.read(tables.kinds, decoder_bits)


def read_side_tables(stored: dict[str, Tensor], rank: int, d: int, decoder_bits: int) -> SideTables:
    """The numbers in stored tensors.

    Raises:
        ProjclustError: the kinds of codes do not go with the deviations.
    """
    kinds = unpack_nibbles(stored["kinds"], rank)  # (C, r)
    coded = kinds != NONE
    # A compiler cannot look at data; what it follows was read before.
    if not torch.compiler.is_compiling() and int(coded.sum()) != len(stored["deviations"]):
        raise ProjclustError("there is not one deviation for each coordinate with a code")
    place = coded.flatten().cumsum(0).view(coded.shape) * coded  # from 1 on
    steps = torch.nn.functional.pad(stored["deviations"], (1, 0))[place]
    means, mean_scales = stored.get("means"), None
    if means is not None:
        mean_scales = bits_float(stored["mean_scales"], torch.bfloat16)
    codes = _Codes(
        steps,
        bits_float(stored["gains"], torch.bfloat16),
        unpack_nibbles(stored["decoder"], d) if decoder_bits == 4 else stored["decoder"],
        bits_float(stored["decoder_scales"], torch.float16),
        means,
        mean_scales,
    )
    return codes.read(kinds, decoder_bits)


def stored_means(means: Tensor) -> Tensor:
    """(C, d) float32 means as they will be read."""
    codes, scales = _rounded(means, 8, torch.bfloat16)
    return (codes.float() - OFFSET[8]) * scales.unsqueeze(1)


def stored_decoders(decoders: Tensor, bits: int) -> Tensor:
    """(G, r, d) float32 decoders as they will be read; of 4 bits each row is cut off where that serves it best."""
    rows = decoders.float()
    if bits == 4:
        largest = rows.abs().amax(-1, keepdim=True)
        best, best_error = rows, torch.full_like(largest, float("inf"))
        for fraction in torch.linspace(1, 0.5, 21).tolist():
            codes, scales = _rounded(rows.clamp(-fraction * largest, fraction * largest), bits, torch.float16)
            read = (codes.float() - OFFSET[bits]) * scales.unsqueeze(-1)
            error = (read - rows).square().sum(-1, keepdim=True)
            best = torch.where(error < best_error, read, best)
            best_error = torch.minimum(error, best_error)
        return best
    codes, scales = _rounded(rows, bits, torch.float16)
    return (codes.float() - OFFSET[bits]) * scales.unsqueeze(-1)


def read_classes(stored: dict[str, Tensor], n: int, classes: int) -> Tensor:
    """(n,) the class of every row, int64.

    Raises:
        ProjclustError: one is not among the classes.
    """
    if classes == 1:
        return torch.zeros(n, dtype=torch.int64, device=stored["weight"].device)
    ids = unpack_nibbles(stored["classes"], n) if classes <= 16 else stored["classes"]
    if n and int(ids.max()) >= classes:
        raise ProjclustError(f"a class id lies outside 0 .. {classes - 1}")
    return ids.long()


def store_classes(ids: Tensor, classes: int) -> dict[str, Tensor]:
    """The bytes of class ids, (n,): none where there is one class only."""
    if classes == 1:
        return {}
    return {"classes": pack_nibbles(ids) if classes <= 16 else ids.to(torch.uint8)}


def _rounded(values: Tensor, bits: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(..., m) as numbers of so many bits from 0 on, and their (...,) scales: the largest takes the largest code."""
    offset = OFFSET[bits]
    scales = (values.abs().amax(-1) / (offset - 1)).to(scale_dtype).float()
    codes = (values / scales.clamp(min=1e-38).unsqueeze(-1)).round() + offset
    return codes.clamp(1, 2 * offset - 1).to(torch.uint8), scales
