"""Reading codes while a model is exported to ONNX, by operations that every onnxruntime has, that of browsers too.

There are no views of bytes as floats in ONNX and no shifts in parts of it, and onnxruntime-web converts no uint16. So
numbers are taken apart by divisions, of int32. What follows from stored bytes alone is left to the runtime, which
computes it once while it loads a file: the file holds the bytes.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

# The bits of the exponent and of the fraction of a float of two bytes, below its sign.
_FIELDS = {torch.float16: (5, 10), torch.bfloat16: (8, 7)}


def in_onnx_export() -> bool:
    """Whether torch.onnx.export is recording operations."""
    # The compiler first: torch.onnx takes a while to import.
    return bool(torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export())


def nibbles(packed: Tensor, count: int) -> Tensor:
    """int32 (..., count): see `projclust.coding.packing.unpack_nibbles`."""
    wide = packed.int()
    return torch.stack([_divided(wide, 16), wide % 16], -1).flatten(-2)[..., :count]


def floats(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 (...): see `projclust.coding.packing.bits_float`; for finite numbers."""
    exponent_bits, fraction_bits = _FIELDS[dtype]
    low, high = stored.int().unbind(-1)
    word, one = low + 256 * high, 1 << fraction_bits
    exponent = _divided(word, one) % (1 << exponent_bits)
    is_normal = exponent.clamp(max=1)  # numbers next to zero have no 1 before their fraction
    bias = (1 << exponent_bits - 1) - 1 + fraction_bits
    # As a product of two, for the least powers are next to zero themselves, which some processors take for it.
    half = _divided(exponent.clamp(min=1) - bias, 2)
    power = torch.exp2(half.float()) * torch.exp2((exponent.clamp(min=1) - bias - half).float())
    sign = 1 - 2 * _divided(high, 128)
    return (sign * (word % one + is_normal * one)).float() * power


def states(first: Tensor, second: Tensor, shifts: Tensor) -> Tensor:
    """int32: the low bytes of 16 bits, a first byte and a second one, shifted right by `shifts`.

    In floats, which are exact here and faster than divisions of integers.
    """
    shifted = ((first.float() * 256 + second.float()) * torch.exp2(-shifts.float())).floor()
    return (shifted - 256 * (shifted / 256).floor()).int()


def places(classes: Tensor, lengths: Sequence[int], rows: Sequence[int]) -> Tensor:
    """(n,) int32: where each row begins, the rows of a class lying together, in their order, class after class.

    `classes` are (n,); a row of class c has ``lengths[c]`` elements, and there are ``rows[c]`` of them.
    """
    sizes = [count * length for count, length in zip(rows, lengths, strict=True)]
    first = torch.tensor([start - length for start, length in zip(accumulate(sizes, initial=0), lengths, strict=False)])
    numbers = torch.arange(len(lengths), dtype=torch.int32)
    member = (classes.int().unsqueeze(1) == numbers).int()  # (n, C)
    number = member.cumsum(0, dtype=torch.int32)  # from 1 on
    return (member * (number * torch.tensor(lengths).int() + first.int())).sum(1, dtype=torch.int32)


def never(values: Tensor) -> Tensor:
    """(1,) int32 zero that no runtime computes beforehand, for it follows from what a model is given."""
    return (values.reshape(-1)[:1] == torch.inf).int()


def _divided(numbers: Tensor, by: int) -> Tensor:
    """Integers below 2^24 divided by a power of two, the rest dropped; the exporter makes more of other ways."""
    return (numbers.float() / by).int()
