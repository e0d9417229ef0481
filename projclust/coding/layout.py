"""Where in the packed codes each coordinate of each row lies: it follows from the kinds of codes and the class ids."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from projclust.coding.codebooks import FIRST_TABLE, KINDS, NONE, STATE_BITS, STATES
from projclust.errors import ProjclustError

# On the CPU whatever the default device: this may be imported while a model is built without data.
# Behind the kinds comes what stands for no code while coordinates are sorted.
_BITS = torch.tensor([*(kind.bits for kind in KINDS), 0], device="cpu")
_VALUES = torch.tensor([*(kind.values for kind in KINDS), 1], device="cpu")
_FIRST_TABLE = torch.tensor([*FIRST_TABLE, 0], device="cpu")


@dataclass(frozen=True)
class ClassLayout:
    """The code of a row of one class.

    The state of a coordinate is the low byte of the 16 bits from `byte` of the row on, shifted right by `shift`. It is
    looked up in the table whose first entry, among those of all tables, is `entry`.
    """

    coded: Tensor  # (m,) the coordinates that have codes, in the order of the row's bits: by kind, then by number
    kinds: list[int]  # the kind of code of each of them
    byte: Tensor  # (m,) int32, as the next two
    shift: Tensor
    entry: Tensor
    row_bytes: int

    def to(self, device: torch.device) -> "ClassLayout":
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("coded", "byte", "shift", "entry")}
        return replace(self, **moved)


def class_layouts(kinds: Tensor) -> list[ClassLayout]:
    """The layout of each class, for coordinates of these kinds, (C, r) uint8."""
    kinds = kinds.long().cpu()
    if kinds.numel() and int(kinds.max()) >= len(KINDS):
        raise ProjclustError(f"there is no code of kind {int(kinds.max())}")
    ordered, coded = torch.where(kinds == NONE, len(KINDS), kinds).sort(dim=1, stable=True)
    # A kind's coordinates come one after the other; each step of them takes up its bits with its first one.
    place = torch.arange(kinds.shape[1], device="cpu") - torch.searchsorted(ordered, ordered)
    place %= _VALUES[ordered]
    ends_of = torch.where(place == 0, _BITS[ordered], 0).cumsum(1)
    row_bytes = ((ends_of.amax(1) + 7) // 8).tolist() if kinds.shape[1] else [0] * len(kinds)
    # Before a row lie zeros: where fewer than 8 bits have come, the shift leaves only those.
    byte = (ends_of - STATE_BITS).clamp(min=0) // 8
    shift = 16 - (ends_of - 8 * byte)
    entry = (_FIRST_TABLE[ordered] + place) * STATES
    layouts = []
    for c, size in enumerate((kinds != NONE).sum(1).tolist()):
        windows = {"byte": byte[c, :size].int(), "shift": shift[c, :size].int(), "entry": entry[c, :size].int()}
        own_kinds = ordered[c, :size].tolist()
        layouts.append(ClassLayout(coded[c, :size], own_kinds, row_bytes=row_bytes[c], **windows))
    return layouts


def row_starts(classes: Tensor, row_bytes: list[int]) -> Tensor:
    """(n,) the first byte of every row: the rows of a class lie together, in vocabulary order, class after class.

    int32 where that is wide enough.
    """
    ids = classes.to("cpu", torch.uint8).numpy()  # NumPy's stable sort of bytes is the faster one
    lengths = np.repeat(row_bytes, np.bincount(ids, minlength=len(row_bytes)))
    ends = lengths.cumsum()
    starts = np.empty(len(ids), dtype=np.int64)
    starts[ids.argsort(kind="stable")] = ends - lengths
    wide = len(ends) > 0 and ends[-1] >= 2**31
    return torch.from_numpy(starts).to(classes.device, torch.int64 if wide else torch.int32)
