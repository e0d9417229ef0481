"""Small numbers in few bits."""

import torch
from torch import Tensor

from projclust.coding.portable import floats, in_onnx_export, nibbles


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 (..., ceil(m / 2)) of numbers below 16 (..., m): the first in the high half of a byte."""
    values = values.to(torch.uint8)
    if values.shape[-1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[..., ::2] << 4 | values[..., 1::2]


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The first `count` numbers of `pack_nibbles`, uint8 (..., count)."""
    if in_onnx_export():
        return nibbles(packed, count)
    return torch.stack([packed >> 4, packed & 15], -1).flatten(-2)[..., :count]


def pack_steps(states: Tensor, bits: list[int]) -> Tensor:
    """uint8 (N, ceil(sum of bits / 8)): the new bits of each step's state, (N, steps) uint8, the high bit first."""
    device, length = states.device, -(-sum(bits) // 8)
    step = torch.tensor([step for step, count in enumerate(bits) for _ in range(count)], device=device)
    shift = [shift for count in bits for shift in range(count - 1, -1, -1)]
    stream = states.index_select(1, step.long()) >> torch.tensor(shift, dtype=torch.uint8, device=device) & 1
    stream = torch.nn.functional.pad(stream, (0, 8 * length - len(step))).view(len(states), length, 8)
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
    return (stream << shifts).sum(2, dtype=torch.uint8)


def float_bits(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers as the bytes of `dtype`, uint8 (..., itemsize): what half() and to(dtype) leave alone."""
    return values.to(dtype).contiguous().unsqueeze(-1).view(torch.uint8)


def bits_float(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of `float_bits`, float32 (...)."""
    if in_onnx_export():
        return floats(stored, dtype)
    return stored.contiguous().view(dtype).squeeze(-1).float()
