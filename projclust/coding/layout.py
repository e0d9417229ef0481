"""Where in the packed codes each coordinate of each row lies: it follows from the kinds of codes and the class ids."""

from dataclasses import dataclass

import torch
from torch import Tensor

from projclust.errors import ProjclustError

from .codebooks import FIRST_TABLE, KINDS, NONE, STATE_BITS

# On the CPU whatever the default device: this may be imported while a model is built without data.
_BITS = torch.tensor([kind.bits for kind in KINDS], device="cpu")
_VALUES = torch.tensor([kind.values for kind in KINDS], device="cpu")
_FIRST_TABLE = torch.tensor(FIRST_TABLE, device="cpu")


@dataclass(frozen=True)
class ClassLayout:
    """The code of a row of one class.

    Attributes:
        coded: (m,) the coordinates that have codes, in the order of the row's bits: by kind, then by number.
        kinds: of each of them.
        byte, shift: (m,) the state of a coordinate is, of the 16 bits from this byte of the row on, shifted right.
        table: (m,) the row of `decode_tables` that its state is looked up in.
        row_bytes: of the row.
    """

    coded: Tensor
    kinds: list[int]
    byte: Tensor
    shift: Tensor
    table: Tensor
    row_bytes: int


def class_layout(kinds: Tensor) -> ClassLayout:
    """The layout for coordinates of these kinds, (r,) uint8.

    Raises:
        ProjclustError: there is no such kind.
    """
    kinds = kinds.long().cpu()
    if len(kinds) and int(kinds.max()) >= len(KINDS):
        raise ProjclustError(f"there is no code of kind {int(kinds.max())}")
    coded = (kinds + (kinds == NONE) * len(KINDS)).argsort(stable=True)[: int((kinds != NONE).sum())]
    ordered = kinds[coded]
    # A kind's coordinates come one after the other; each step of them takes up its bits with its first one.
    place = torch.arange(len(ordered), device="cpu") - torch.searchsorted(ordered, ordered)
    place %= _VALUES[ordered]
    ends_of = torch.where(place == 0, _BITS[ordered], 0).cumsum(0)
    end = int(ends_of[-1]) if len(ordered) else 0
    # Before a row lie zeros: where fewer than 8 bits have come, the shift leaves only those.
    byte = (ends_of - STATE_BITS).clamp(min=0) // 8
    shift = 16 - (ends_of - 8 * byte)
    return ClassLayout(coded, ordered.tolist(), byte, shift, _FIRST_TABLE[ordered] + place, -(-end // 8))


def row_starts(classes: Tensor, row_bytes: list[int]) -> Tensor:
    """(n,) the first byte of every row: the rows of a class lie together, in vocabulary order, class after class.

    int32 where that is wide enough.
    """
    starts = torch.empty(len(classes), dtype=torch.int64, device=classes.device)
    end = 0
    for number, length in enumerate(row_bytes):
        rows = (classes == number).nonzero().squeeze(1)
        starts[rows] = torch.arange(end, end + len(rows) * length, length, device=rows.device) if length else end
        end += len(rows) * length
    return starts if end >= 2**31 else starts.int()
