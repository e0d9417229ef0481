"""Rows of a matrix as integers of 8 or 4 bits, with a scale for every group of numbers."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from projclust.coding.packing import float_bits, pack_nibbles, unpack_nibbles
from projclust.options import Codes

# Tried for the scale, as fractions of the one that clips nothing: with few levels, clipping the largest number of a
# group so that the others are finer often pays.
CLIPPING = tuple(step / 20 for step in range(20, 5, -1))
NO_CLIPPING = (1.0,)
# Numbers of a row that share a scale, where codes have 4 bits; with 8 bits the whole row does.
GROUP = 32
# Numbers in a temporary: it stays in a core's cache through the search for the scale.
_BLOCK = 2**17


def round_to_levels(
    values: Tensor,
    bits: int,
    factors: tuple[float, ...],
    stored: Callable[[Tensor], Tensor],
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Round groups of numbers (..., m), float32, each with one scale: the one of least squared error among `factors`.

    The levels are a scale times -2^(bits-1) .. 2^(bits-1) - 1. The scale has the sign that puts the largest number on
    the side with one level more (llama.cpp's Q4_0), which on MiniLM gains more than the bits of a zero point would. Of
    two bits the levels are -1.5, -0.5, 0.5 and 1.5: there, a level for zero costs more than it brings.

    Args:
        values: (..., m).
        bits: how many a code has, 2 to 8.
        factors: scales to try, as fractions of the one that clips nothing.
        stored: what becomes of a scale when it is stored.
        weights: (m,) of the columns; default: all one.

    Returns:
        levels (..., m) and scales (..., 1), both float32.
    """
    offset = 0.5 if bits == 2 else 0.0
    lowest = offset - 2 ** (bits - 1)
    extreme = values.gather(-1, values.abs().argmax(-1, keepdim=True))
    best_levels, best_scale = torch.zeros_like(values), torch.zeros_like(extreme)
    least = torch.full_like(extreme, torch.inf)
    # Errors are compared as fractions of the largest number, for squares may leave the range of floats.
    unit = torch.where(extreme == 0, 1.0, extreme)
    relative = values / unit
    for factor in factors:
        scale = stored(extreme * (factor / lowest))
        levels = nearest_levels(values, scale, bits)
        if len(factors) == 1:
            return levels, scale
        errors = (levels * (scale / unit)).sub_(relative).square_()
        error = errors.sum(-1, keepdim=True) if weights is None else errors @ weights.unsqueeze(1)
        better = error < least
        best_levels = torch.where(better, levels, best_levels)
        best_scale = torch.where(better, scale, best_scale)
        least = torch.minimum(error, least)
    return best_levels, best_scale


def nearest_levels(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The level (..., m) of each number that is nearest to it under known scales (..., 1)."""
    offset = 0.5 if bits == 2 else 0.0
    lowest = offset - 2 ** (bits - 1)
    # Whatever the codes of a group without a scale are, they rebuild to zeros.
    divisor = torch.where(scale == 0, 1.0, scale)
    return (values / divisor - offset).round_().add_(offset).clamp_(lowest, lowest + 2**bits - 1)


def row_blocks(table: Tensor, rebuilt: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Float32 blocks of rows (r, d) that stay in a core's cache, each with the same rows of another tensor."""
    size = _rows_of_a_block(table.shape[1])
    for block, into in zip(table.split(size), rebuilt.split(size), strict=True):
        yield block.float(), into


def packed_row_bytes(columns: int, codes: Codes) -> int:
    """The bytes of a row of so many numbers as `pack_rows` packs it."""
    bits, groups = _bits_and_groups(columns, codes)
    return -(-columns * bits // 8) + 2 * groups


def pack_rows(rows: Tensor, codes: Codes, scales: Tensor | None = None) -> Tensor:
    """Rows as integers, int8 with a scale each, int4 with one for every 32 numbers, the last group maybe short.

    Args:
        rows: (r, c), of any float dtype.
        codes: int8 or int4.
        scales: (r, groups) that are known, from `scales_of`, in place of new ones; rows that were rounded with them
            before come out as they were stored, even where they were kept as bfloat16 meanwhile.

    Returns:
        uint8 (r, `packed_row_bytes`): the codes, plus 2^(bits-1), then the bytes of the scales in bfloat16, whose range
        no weights leave.
    """
    bits, groups = _bits_and_groups(rows.shape[1], codes)
    packed = torch.empty(len(rows), packed_row_bytes(rows.shape[1], codes), dtype=torch.uint8, device=rows.device)
    factors = CLIPPING if bits == 4 else NO_CLIPPING
    start = 0
    for block, into in row_blocks(rows, packed):
        values = _in_groups(block, groups)
        if scales is None:
            levels, found = round_to_levels(values, bits, factors, lambda scale: scale.bfloat16().float())
        else:
            found = scales[start : start + len(block)].to(values).unsqueeze(-1)
            levels = nearest_levels(values, found, bits)
        start += len(block)
        numbers = (levels + 2 ** (bits - 1)).to(torch.uint8).flatten(1)[:, : rows.shape[1]]
        numbers = pack_nibbles(numbers) if bits == 4 else numbers
        into.copy_(torch.cat([numbers, float_bits(found.squeeze(-1), torch.bfloat16).flatten(1)], 1))
    return packed


def scales_of(packed: Tensor, columns: int) -> Tensor:
    """The scales (r, groups) of packed rows (r, bytes), bfloat16."""
    _, groups = _bits_and_groups(columns, codes_of(packed, columns))
    # A copy of its own, for bytes at an odd place are no floats.
    stored = packed[:, packed.shape[1] - 2 * groups :].clone(memory_format=torch.contiguous_format)
    return stored.view(torch.bfloat16)


def codes_of(packed: Tensor, columns: int) -> Codes:
    """The codes with which rows of so many numbers take the bytes that these do.

    Raises:
        ValueError: there are none.
    """
    for codes in (Codes.INT8, Codes.INT4):
        if packed.dim() == 2 and packed.shape[1] == packed_row_bytes(columns, codes):
            return codes
    raise ValueError(f"rows of {columns} numbers are never packed into {list(packed.shape)} bytes")


def unpack_rows(packed: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The numbers (r, columns) of `pack_rows`."""
    bits, groups = _bits_and_groups(columns, codes := codes_of(packed, columns))
    rows = torch.empty(len(packed), columns, dtype=dtype, device=packed.device)
    taken, size = packed_row_bytes(columns, codes) - 2 * groups, _rows_of_a_block(columns)
    scales = scales_of(packed, columns).float().unsqueeze(-1)
    for stored, own, into in zip(packed.split(size), scales.split(size), rows.split(size), strict=True):
        numbers = unpack_nibbles(stored[:, :taken], columns) if bits == 4 else stored[:, :taken]
        levels = _in_groups(numbers.float() - 2 ** (bits - 1), groups)
        into.copy_((levels * own).flatten(1)[:, :columns])
    return rows


def _bits_and_groups(columns: int, codes: Codes) -> tuple[int, int]:
    """The bits of a code, and how many scales a row has."""
    return (4, -(-columns // GROUP)) if codes == Codes.INT4 else (8, 1)


def _in_groups(rows: Tensor, groups: int) -> Tensor:
    """(r, groups, m) of rows (r, c), the last group with zeros in place of what it lacks."""
    short = 0 if groups == 1 else groups * GROUP - rows.shape[1]
    return torch.nn.functional.pad(rows, (0, short)).unflatten(1, (groups, -1))


def _rows_of_a_block(columns: int) -> int:
    return max(1, _BLOCK // max(1, columns))
