"""The kinds of codes a coordinate can have, and the table of 256 values that each is decoded by.

A row's codes are one string of bits. Whatever its kind, a coordinate is decoded from the 8 bits of that string that end
with its own (the state), by a table of 256 values: one look, no recursion, any coordinate alone.

The trellis codes are bitshift trellises (Mao and Gray, "Stationary and trellis encoding for iid sources and
simulation", 2010; Tseng et al., "QTIP", 2024, section 3): the next state is the last one shifted by the new bits, so
few bits a coordinate still choose among 256 values. Their tables were trained on Gaussian samples by
scripts/train_codebooks.py and come with the package, as do the Lloyd-Max levels of the scalar codes, which look at
their own bits only, as int4 and int8 do.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

STATE_BITS = 8
STATES = 1 << STATE_BITS
CODEBOOKS_FILE = Path(__file__).with_name("codebooks.safetensors")


@dataclass(frozen=True)
class Kind:
    """One way to code a coordinate of unit variance.

    The distortion is the mean squared error on Gaussian samples, measured by scripts/train_codebooks.py; that of the
    integers, whose grid is laid over what they code, is the one of a grid of `INTEGER_REACH` deviations.
    """

    name: str  # of its table in codebooks.safetensors; integers have none and are named as in `options.Codes`
    bits: int  # the new bits of a step
    values: int  # the coordinates that a step decodes
    distortion: float

    @property
    def rate(self) -> float:
        """The bits of a coordinate."""
        return self.bits / self.values


# How many deviations the grid of integers reaches to either side where it is laid by the standard deviation.
INTEGER_REACH = 4.5


def largest_integer(bits: int) -> int:
    """The largest integer of so many bits, sign included."""
    return (1 << bits - 1) - 1


def _integer(bits: int) -> Kind:
    return Kind(f"int{bits}", bits, 1, (INTEGER_REACH / largest_integer(bits)) ** 2 / 12)


# A kind's place is its number in the stored format: append, never change.
KINDS = (
    Kind("none", 0, 1, 1.0),
    Kind("trellis-1/4", 1, 4, 0.7334),
    Kind("trellis-1/2", 1, 2, 0.5370),
    Kind("trellis-1", 1, 1, 0.2827),
    Kind("trellis-2", 2, 1, 0.0757),
    Kind("trellis-3", 3, 1, 0.0198),
    Kind("trellis-4", 4, 1, 0.0056),
    _integer(4),
    _integer(8),
    Kind("scalar-1", 1, 1, 0.3634),
    Kind("scalar-2", 2, 1, 0.1175),
    Kind("scalar-3", 3, 1, 0.0345),
    Kind("scalar-4", 4, 1, 0.0095),
)
NUMBER_OF = {kind.name: number for number, kind in enumerate(KINDS)}
NONE = 0
TRELLIS = (1, 2, 3, 4, 5, 6, 8)  # int8 for what deserves more bits than the trellises have
SCALAR = (9, 10, 11, 12, 8)
# Tables of one kind lie one after the other, one for each of its values.
FIRST_TABLE = tuple(sum(kind.values for kind in KINDS[:number]) for number in range(len(KINDS)))


def is_integer(kind: int) -> bool:
    """Whether codes are integers, multiplied by a step, and not values of unit variance."""
    return KINDS[kind].name.startswith("int")


def needs_search(kind: int) -> bool:
    """Whether a coordinate's value depends on bits before its own, so that rows are encoded by Viterbi search."""
    return KINDS[kind].name.startswith("trellis")


def distortions(device: torch.device | str) -> Tensor:
    """(kinds,) float64: the distortion of every kind."""
    return torch.tensor([kind.distortion for kind in KINDS], device=device, dtype=torch.float64)


@cache
def decode_tables(device: torch.device | str = "cpu") -> Tensor:
    """(tables, 256) float32: the values of every kind by state; a kind's first is ``FIRST_TABLE[kind]``."""
    stored = load_file(CODEBOOKS_FILE)
    states = torch.arange(STATES, dtype=torch.float32, device="cpu")
    tables = []
    for number, kind in enumerate(KINDS):
        if number == NONE:
            tables.append(torch.zeros(1, STATES, device="cpu"))
        elif is_integer(number):
            tables.append((states % (1 << kind.bits) - (1 << kind.bits - 1)).unsqueeze(0))
        else:
            own_states = 1 << (STATE_BITS if needs_search(number) else kind.bits)
            tables.append(stored[kind.name].float().repeat(1, STATES // own_states))
    return torch.cat(tables).to(device)
