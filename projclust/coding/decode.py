"""Decoding rows of a coded table, any of them alone and all at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from projclust.coding.codebooks import STATES, decode_tables
from projclust.coding.layout import ClassLayout
from projclust.coding.portable import in_onnx_export, states


class Windows(NamedTuple):
    """Where the state of each coordinate lies in a row of each class, as in `ClassLayout`; at 0 without a code."""

    byte: Tensor  # (C, r) int32, as the next two
    shift: Tensor
    entry: Tensor
    values: Tensor  # (tables * 256,) float32


def windows_of(layouts: list[ClassLayout], rank: int, device: torch.device | str = "cpu") -> Windows:
    """The windows of classes whose rows have these layouts."""
    parts = torch.zeros(3, len(layouts), rank, dtype=torch.int32, device="cpu")
    for number, own in enumerate(layouts):
        parts[:, number, own.coded] = torch.stack([own.byte, own.shift, own.entry])
    byte, shift, entry = parts.to(device).unbind(0)
    return Windows(byte, shift, entry, values=decode_tables(device).flatten())


def unit_coordinates(codes: Tensor, windows: Windows, starts: Tensor, classes: Tensor) -> Tensor:
    """(N, r) float32 coordinates in units of their deviations, zero without a code, from the codes of the whole table.

    `starts` and `classes`, (N,), are the first byte and the class of each row to decode.
    """
    if len(codes) == 0:
        return windows.values.new_zeros(len(starts), windows.byte.shape[1])
    # Where nothing is needed, of a row without codes or after a state that ends with a byte, the last byte will do.
    first = (starts.unsqueeze(1) + windows.byte.index_select(0, classes)).clamp(max=len(codes) - 1)  # (N, r)
    second = (first + 1).clamp(max=len(codes) - 1)
    shifts = windows.shift.index_select(0, classes)
    if in_onnx_export():
        state = states(entries(codes, first), entries(codes, second), shifts)
    else:
        pair = entries(codes, first).int() << 8 | entries(codes, second).int()
        state = pair >> shifts & (STATES - 1)
    return entries(windows.values, state + windows.entry.index_select(0, classes))


def entries(values: Tensor, places: Tensor) -> Tensor:
    """``values[places]`` of a vector; on a CPU it takes a fraction of the time."""
    return values.index_select(0, places.flatten()).view(places.shape)
