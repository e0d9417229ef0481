"""Reading a coded table on a GPU without torch's many small operations: see `projclust.coding.gpu_kernels`.

Torch does the same in `projclust.tables` where there is no Triton, for training and for compilers. Sums are taken in
another order: results agree to float32's last bits.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projclust.coding import gpu
from projclust.coding.layout import ClassLayout
from projclust.coding.stored import SideTables, decoder_of_each
from projclust.shapes import CodedShape

# What a program takes: coordinates of one row for a lookup; rows, coordinates and positions for others.
_LOOKUP_COORDINATES = 128
_ROWS, _COORDINATES, _POSITIONS = 128, 16, 16
# The most numbers between the codes and the rows of a lookup.
_MOST_BETWEEN = 2**24


class GpuReading(NamedTuple):
    """What the kernels read, on one device: the table's own codes, and what little follows from the other bytes."""

    codes: Tensor
    last: int  # the number of the last byte of the codes
    starts: Tensor  # (n,) the first byte of each row's code
    classes: Tensor  # (n,) uint8
    first: Tensor  # (C + 1,) int32: where the coordinates of a class begin, and end, among those that have codes in any
    places: Tensor  # (coded, 4) int32: row of the basis, then byte, shift and entry as in `ClassLayout`
    factors: Tensor  # (coded,) float32 deviations
    values: Tensor  # (tables * 256,) float32
    basis: Tensor  # (G*r, d) float32 decoders, below them the (C, d) means, if there are any
    means_from: int  # the row of the first mean


def gpu_reading_of(
    codes: Tensor, side: SideTables, layouts: Sequence[ClassLayout], starts: Tensor, classes: Tensor, values: Tensor
) -> GpuReading:
    """What kernels read of a table, on the device of `values`; the last three are what `Addresses` have."""
    decoders, rank = side.decoders.shape[:2]
    groups, deviations = decoder_of_each(len(layouts), decoders), side.deviations.cpu()
    places = [
        torch.stack([own.coded + group * rank, own.byte, own.shift, own.entry], 1)
        for own, group in zip(layouts, groups, strict=True)
    ]
    basis = side.decoders.flatten(0, 1)
    return GpuReading(
        codes=codes,
        last=max(len(codes) - 1, 0),
        starts=starts,
        classes=classes,
        first=torch.tensor([0, *accumulate(map(len, places))], dtype=torch.int32, device=values.device),
        places=torch.cat(places).to(values.device, torch.int32),
        factors=torch.cat([row[own.coded] for row, own in zip(deviations, layouts, strict=True)]).to(values.device),
        values=values,
        basis=basis if side.means is None else torch.cat([basis, side.means]),
        means_from=len(basis),
    )


def read_rows(reading: GpuReading, ids: Tensor, shape: CodedShape, dtype: torch.dtype) -> Tensor:
    """(N, d) rows of the table, of this dtype, for a vector of ids; one outside the vocabulary fails as in torch."""
    most = max(1024, _MOST_BETWEEN // len(reading.basis))
    if len(ids) > most:
        return torch.cat([read_rows(reading, part, shape, dtype) for part in ids.split(most)])
    ids = ids.contiguous()
    coordinates = torch.zeros(len(ids), len(reading.basis), dtype=torch.float32, device=ids.device)
    if len(ids) > 0:
        # By F.embedding, which checks the range of the ids.
        starts = F.embedding(ids, reading.starts.unsqueeze(1))
        with gpu.device_of(ids):
            gpu.gpu_kernels().place[len(ids),](
                *(ids, starts, coordinates, reading.codes, reading.last, reading.classes, reading.first),
                *(reading.places, reading.factors, reading.values, len(reading.basis), reading.means_from),
                AFFINE=shape.affine,
                COORDINATES=_LOOKUP_COORDINATES,
                num_warps=1,
            )
    # A lookup is not for autocast.
    with torch.autocast(ids.device.type, enabled=False):
        return (coordinates @ reading.basis).to(dtype)


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
    inner = hidden.float() @ reading.basis.T
    out = hidden.new_empty(len(hidden), shape.n)
    with gpu.device_of(hidden):
        gpu.gpu_kernels().logits[len(head.blocks), -(-len(hidden) // _POSITIONS)](
            *(inner, out, reading.codes, reading.last, head.blocks, head.rows),
            *(reading.first, reading.places, reading.factors, reading.values),
            *(shape.n, len(hidden), len(reading.basis), reading.means_from),
            AFFINE=shape.affine,
            ROWS=_ROWS,
            COORDINATES=_COORDINATES,
            POSITIONS=_POSITIONS,
        )
    return out


def coordinates_of(codes: Tensor, rows: int, layout: ClassLayout, values: Tensor, factors: Tensor) -> Tensor:
    """(m, rows) float32 coordinates of rows of one class whose codes are given: their values times the (m,) factors."""
    out = torch.empty(len(layout.coded), rows, dtype=torch.float32, device=codes.device)
    grid = -(-rows // _ROWS), -(-len(layout.coded) // _COORDINATES)
    with gpu.device_of(codes):
        gpu.gpu_kernels().coordinates[grid](
            *(codes, max(len(codes) - 1, 0), out, rows, layout.row_bytes, len(layout.coded)),
            *(layout.byte, layout.shift, layout.entry, values, factors),
            ROWS=_ROWS,
            COORDINATES=_COORDINATES,
        )
    return out
