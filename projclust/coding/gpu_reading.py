"""Reading a coded table on a GPU without torch's many small operations: see `projclust.coding.gpu_kernels`.

Torch does the same in `projclust.tables` where there is no Triton, for training and for compilers. Sums are taken in
another order: results agree to float32's last bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projclust.coding import gpu
from projclust.coding.layout import ClassLayout
from projclust.coding.reading import reading_of
from projclust.shapes import CodedShape

# Of a lookup: what is multiplied at once. Of the others: rows, coordinates and positions of a program.
_LOOKUP_COORDINATES, _LOOKUP_COLUMNS = 16, 128
_ROWS, _COORDINATES, _POSITIONS = 64, 16, 16


class GpuReading(NamedTuple):
    """What the kernels read, on one device; what is not told here is as in `projclust.coding.reading.Reading`."""

    codes: Tensor
    last: int  # the number of the last byte of the codes
    starts: Tensor
    classes: Tensor
    first: Tensor  # int32
    places: Tensor
    factors: Tensor
    values: Tensor
    decoders: Tensor  # (G*r, bytes)
    means: Tensor  # (C, d), or none
    mean_scales: Tensor  # (C,), or none


def gpu_reading_of(
    stored: dict[str, Tensor],
    layouts: Sequence[ClassLayout],
    deviations: Tensor,
    starts: Tensor,
    classes: Tensor,
    values: Tensor,
) -> GpuReading:
    """What kernels read of a table on a GPU; see `projclust.coding.reading.reading_of`."""
    nothing = torch.empty(0, dtype=torch.uint8, device="cpu")
    # The large parts stay where they are.
    small = {name: nothing if name in ("weight", "classes") else part.cpu() for name, part in stored.items()}
    plain = reading_of(small, layouts, deviations.cpu(), starts=nothing, classes=nothing, values=nothing)

    def moved(array: Any, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(array).to(values.device, dtype)

    return GpuReading(
        codes=stored["weight"],
        last=max(len(stored["weight"]) - 1, 0),
        starts=starts,
        classes=classes,
        first=moved(plain.first, torch.int32),
        places=moved(plain.places, torch.int32),
        factors=moved(plain.factors, torch.float32),
        values=values,
        decoders=stored["decoder"].flatten(0, 1),
        means=stored.get("means", nothing.to(values.device)),
        mean_scales=moved(plain.mean_scales, torch.float32),
    )


def read_rows(reading: GpuReading, ids: Tensor, shape: CodedShape, dtype: torch.dtype) -> Tensor:
    """(N, d) rows of the table, of this dtype, for a vector of ids; one outside the vocabulary fails as in torch."""
    ids, rows = ids.contiguous(), torch.empty(len(ids), shape.d, dtype=dtype, device=ids.device)
    if len(ids) > 0:
        # By F.embedding, which checks the range of the ids.
        starts = F.embedding(ids, reading.starts.unsqueeze(1))
        with gpu.device_of(ids):
            gpu.gpu_kernels().lookup[len(ids), -(-shape.d // _LOOKUP_COLUMNS)](
                ids,
                starts,
                rows,
                *(reading.codes, reading.last, reading.classes, reading.first, reading.places, reading.factors),
                *(reading.values, reading.decoders, reading.means, reading.mean_scales, shape.d),
                reading.decoders.shape[1],
                BITS=shape.decoder_bits,
                AFFINE=shape.affine,
                COORDINATES=_LOOKUP_COORDINATES,
                COLUMNS=_LOOKUP_COLUMNS,
            )
    return rows


class GpuHeadRows(NamedTuple):
    """The rows of a table by class, in blocks that programs take."""

    rows: Tensor  # (n,) int64, the vocabulary rows, class after class
    blocks: Tensor  # (B, 5) int64: class, first row by class, rows, first byte, bytes of a row


def gpu_head_rows(rows: Tensor, counts: Sequence[int], layouts: Sequence[ClassLayout]) -> GpuHeadRows:
    """The blocks of a table with so many rows in each class; `rows`, (n,), are those of the vocabulary by class."""
    blocks, row, byte = [], 0, 0
    for number, (count, layout) in enumerate(zip(counts, layouts, strict=True)):
        for start in range(0, count, _ROWS):
            size = min(_ROWS, count - start)
            blocks.append((number, row + start, size, byte + start * layout.row_bytes, layout.row_bytes))
        row, byte = row + count, byte + count * layout.row_bytes
    return GpuHeadRows(rows, torch.tensor(blocks, dtype=torch.int64, device=rows.device))


def read_logits(reading: GpuReading, hidden: Tensor, head: GpuHeadRows, shape: CodedShape) -> Tensor:
    """(P, n) logits of hidden states, (P, d), in their dtype, in one pass over the codes."""
    hidden = hidden.contiguous()
    with gpu.device_of(hidden):
        inner = _products(hidden, reading.decoders, shape.decoder_bits, None)
        shift = _products(hidden, reading.means, 8, reading.mean_scales) if shape.affine else inner
        out = hidden.new_empty(len(hidden), shape.n)
        gpu.gpu_kernels().logits[len(head.blocks), -(-len(hidden) // _POSITIONS)](
            *(inner, shift, out, reading.codes, reading.last, head.blocks, head.rows),
            *(reading.first, reading.places, reading.factors, reading.values),
            *(shape.n, len(hidden), inner.shape[1], shape.classes),
            AFFINE=shape.affine,
            ROWS=_ROWS,
            COORDINATES=_COORDINATES,
            POSITIONS=_POSITIONS,
        )
    return out


def _products(hidden: Tensor, packed: Tensor, bits: int, scales: Tensor | None) -> Tensor:
    """(P, m) float32 products of hidden states and rows of packed integers, (m, bytes), times their scales."""
    out = hidden.new_empty(len(hidden), len(packed), dtype=torch.float32)
    grid = -(-len(packed) // _COORDINATES), -(-len(hidden) // _POSITIONS)
    gpu.gpu_kernels().products[grid](
        *(packed, out if scales is None else scales, hidden, out),
        *(len(packed), len(hidden), hidden.shape[1], packed.shape[1]),
        BITS=bits,
        SCALED=scales is not None,
        ROWS=_COORDINATES,
        COLUMNS=128,
        POSITIONS=_POSITIONS,
    )
    return out


def coordinates_of(codes: Tensor, rows: int, layout: ClassLayout, values: Tensor) -> Tensor:
    """(m, rows) float32 coordinates, in units of their deviations, of rows of one class whose codes are given."""
    out = torch.empty(len(layout.coded), rows, dtype=torch.float32, device=codes.device)
    grid = -(-rows // _ROWS), -(-len(layout.coded) // _COORDINATES)
    with gpu.device_of(codes):
        gpu.gpu_kernels().coordinates[grid](
            *(codes, max(len(codes) - 1, 0), out, rows, layout.row_bytes, len(layout.coded)),
            *(layout.byte, layout.shift, layout.entry, values),
            ROWS=_ROWS,
            COORDINATES=_COORDINATES,
        )
    return out
