"""Reading a coded table on the CPU without torch's small operations: see `projclust.coding.reading_kernels`.

Torch does the same in `projclust.tables` where numba is absent, on other devices, in other dtypes, for training and for
compilers. It takes sums in another order: results agree to float32's last bits.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from projclust.coding.layout import ClassLayout
from projclust.coding.packing import bits_float
from projclust.coding.stored import decoder_of_each
from projclust.shapes import CodedShape

if TYPE_CHECKING:
    from typing import Any

    Array = np.ndarray[Any, np.dtype[Any]]

# What a thread does at once: distinct rows of a lookup; rows of a head, which share tables of sums; rows of decoders.
_LOOKUP_ROWS, HEAD_ROWS, _DECODER_ROWS = 1024, 8192, 2048
# Up to so many ids are read by one compiled loop, without unpacked decoders.
_FEW_IDS = 16


class Reading(NamedTuple):
    """What the loops read: views of stored bytes, and what follows from some of them."""

    codes: "Array"
    starts: "Array"  # (n,) the first byte of each row's code
    classes: "Array"  # (n,) uint8
    first: "Array"  # (C + 1,) where the coordinates of a class begin, and end, among those that have codes in any
    places: "Array"  # (coded, 4) int32: row of the decoders, then byte, shift and entry as in `ClassLayout`
    factors: "Array"  # (coded,) float32: deviations times the scales of the rows of the decoders
    values: "Array"  # (tables * 256,) float32
    decoders: "Array"  # (G*r, bytes) uint8
    bases: "Array"  # (C,) the first row of each class's decoder
    needed: "Array"  # (C,) how many of its rows the class needs
    means: "Array"  # (C, d) uint8, or none
    mean_scales: "Array"  # (C,) float32, or none


class _Wanted(NamedTuple):
    """The ids of a lookup, and the rows to decode for them."""

    ids: "Array"  # (N,) int64
    order: "Array"  # (N,) int32: by class, the first place of each distinct id among the ids
    following: "Array"  # (N,) int32: the next place that has the same id, or -1


def reading_of(
    stored: dict[str, Tensor],
    layouts: Sequence[ClassLayout],
    deviations: Tensor,
    starts: Tensor,
    classes: Tensor,
    values: Tensor,
) -> Reading:
    """What loops read of a table on the CPU: its stored bytes, (C, r) deviations, and what `Addresses` have."""
    decoders, rank = stored["decoder"].shape[:2]
    bases = np.array(decoder_of_each(len(layouts), decoders)) * rank
    coded = [layout.coded.numpy() for layout in layouts]
    own = [
        np.stack([own + base, layout.byte.numpy(), layout.shift.numpy(), layout.entry.numpy()], 1)
        for layout, own, base in zip(layouts, coded, bases, strict=True)
    ]
    places = np.concatenate(own).astype(np.int32)
    scales = bits_float(stored["decoder_scales"], torch.float16).flatten().numpy()
    factors = np.concatenate([row[own] for row, own in zip(deviations.numpy(), coded, strict=True)])
    affine = "means" in stored
    return Reading(
        codes=stored["weight"].numpy(),
        starts=starts.numpy(),
        classes=classes.numpy(),
        first=np.cumsum([0, *map(len, coded)]),
        places=places,
        factors=factors * scales[places[:, 0]],
        values=values.numpy(),
        decoders=stored["decoder"].flatten(0, 1).numpy(),
        bases=bases,
        needed=np.array([own.max(initial=-1) + 1 for own in coded]),
        means=stored["means"].numpy() if affine else np.empty((0, 0), np.uint8),
        mean_scales=bits_float(stored["mean_scales"], torch.bfloat16).numpy() if affine else np.empty(0, np.float32),
    )


def read_rows(reading: Reading, ids: Tensor, shape: CodedShape) -> Tensor:
    """(N, d) float32 rows of the table for a vector of ids; each different one is decoded once.

    Raises:
        IndexError: an id is outside the vocabulary.
    """
    kernels, rows = _kernels(), _floats(len(ids), shape.d)
    wanted = _Wanted(np.ascontiguousarray(ids.numpy(), np.int64), *np.empty((2, len(ids)), np.int32))
    if len(ids) <= _FEW_IDS:
        distinct = kernels.read_few(reading, wanted, shape.decoder_bits, rows.numpy())
    else:
        distinct = _read_many(reading, wanted, shape, rows.numpy())
    if distinct < 0:
        raise IndexError(f"an id lies outside the vocabulary of {shape.n}")
    return rows


def _read_many(reading: Reading, wanted: _Wanted, shape: CodedShape, rows: "Array") -> int:
    """Fill `rows`, (N, d); the number of distinct ids, or -1 where one lies outside."""
    kernels, parts = _kernels(), np.empty((shape.classes, 4), np.int64)
    distinct, count = kernels.plan(reading, wanted, parts)
    if distinct < 0:
        return -1
    products = parts[:count].tolist()
    most = max((end - start for start, end, *_ in products), default=0)
    # The same ones for all products: they stay in a core's cache. Torch multiplies many rows faster than a loop does.
    coordinates, found = _floats(most, shape.rank), _floats(most, shape.d)
    own, result = coordinates.numpy(), found.numpy()
    numbers, unpacked = _floats(shape.rank, shape.d), -1

    def decode(first: int, end: int) -> None:
        kernels.decode(reading, wanted, start + first, own[first:end])

    def put(first: int, end: int) -> None:
        kernels.put(reading, wanted, start + first, result[first:end], rows)

    for start, stop, base, needed in products:
        if base != unpacked:
            kernels.unpack(reading.decoders[base : base + shape.rank], shape.decoder_bits, numbers.numpy())
            unpacked = base
        size = stop - start
        _in_threads(decode, size, _LOOKUP_ROWS)
        torch.mm(coordinates[:size, :needed], numbers[:needed], out=found[:size])
        _in_threads(put, size, _LOOKUP_ROWS)
    return int(distinct)


class HeadRows(NamedTuple):
    """The rows of a table by class, in pieces that threads take."""

    rows: "Array"  # (n,) int64, the vocabulary rows, class after class
    ranges: list[tuple[int, int]]  # of each piece, the most rows first
    tasks: list[tuple[int, int, int]]  # the class of each, the first byte of its codes, and the bytes of a row


def head_rows(rows: Tensor, counts: Sequence[int], layouts: Sequence[ClassLayout]) -> HeadRows:
    """The pieces of a table with so many rows in each class; `rows`, (n,), are those of the vocabulary by class."""
    pieces, row, byte = [], 0, 0
    for number, (count, layout) in enumerate(zip(counts, layouts, strict=True)):
        for start in range(0, count, HEAD_ROWS):
            size = min(HEAD_ROWS, count - start)
            task = number, byte + start * layout.row_bytes, layout.row_bytes
            pieces.append((size, (row + start, row + start + size), task))
        row, byte = row + count, byte + count * layout.row_bytes
    pieces.sort(reverse=True)
    return HeadRows(rows.numpy(), [own for _, own, _ in pieces], [task for *_, task in pieces])


def read_logits(reading: Reading, hidden: Tensor, head: HeadRows, shape: CodedShape) -> Tensor:
    """(P, n) float32 logits of hidden states, (P, d), in one pass over the codes."""
    kernels = _kernels()
    states = np.ascontiguousarray(hidden.numpy())
    halves, inner = states, np.empty((len(states), len(reading.decoders)), np.float32)
    if shape.decoder_bits == 4:  # what belongs to the high halves of bytes first
        half = reading.decoders.shape[1]
        halves = np.zeros((len(states), 2 * half), np.float32)
        halves[:, :half], halves[:, half : half + shape.d // 2] = states[:, ::2], states[:, 1::2]

    def multiply(start: int, end: int) -> None:
        kernels.products(reading.decoders[start:end], shape.decoder_bits, halves, inner[:, start:end])

    _in_threads(multiply, len(reading.decoders), _DECODER_ROWS)
    shift = np.zeros((len(states), shape.classes), np.float32)
    if shape.affine:
        kernels.products(reading.means, 8, states, shift)
        shift *= reading.mean_scales
    logits = _floats(len(states), shape.n)
    found, out = (inner, shift), logits.numpy()

    def add_up(number: int, _: int) -> None:
        start, end = head.ranges[number]
        kernels.logits(reading, head.tasks[number], found, head.rows[start:end], out)

    _in_threads(add_up, len(head.tasks), 1)
    return logits


def coordinates_of(
    codes: Tensor, rows: int, layout: ClassLayout, values: Tensor, factors: Tensor, room: Tensor | None = None
) -> Tensor:
    """(m, rows) float32 coordinates of rows of one class whose codes are given: their values times the (m,) factors.

    They lie in `room`, a vector, if there is one: new memory costs as much as the numbers in it.
    """
    size = len(layout.coded), rows
    out = _floats(*size) if room is None else room[: size[0] * rows].view(size)
    places = torch.stack([layout.byte, layout.shift, layout.entry])
    _kernels().coordinates(codes.numpy(), places.numpy(), values.numpy(), factors.numpy(), out.numpy())
    return out


@cache
def _kernels() -> "Any":
    """The compiled loops; imported only where they are needed, for numba may be absent."""
    from projclust.coding import reading_kernels

    return reading_kernels


def _in_threads(work: Callable[[int, int], None], count: int, block: int) -> None:
    from projclust.coding.kernels import in_threads

    in_threads(work, count, block)


def _floats(*shape: int) -> Tensor:
    """To be filled; whatever the default device and dtype."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
