"""Coded tables to test with, and a decoder of rows that is written bit by bit from docs/format.md."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projclust.coding.codebooks import FIRST_TABLE, KINDS, decode_tables
from projclust.coding.fit import CodedMatrix, code_clusters, fit_coded
from projclust.tables import CodedEmbedding

ODD = 13  # columns, an odd number of nibbles


def decode_bits(bits: str, kinds: Sequence[int]) -> list[float]:
    """The values of coordinates of ascending kinds, coordinate by coordinate, from a row's bits."""
    tables, values, end, within = decode_tables(), [], 0, 0
    for number, kind in enumerate(kinds):
        first = number == 0 or kinds[number - 1] != kind
        within = 0 if first else within + 1
        place = within % KINDS[kind].values
        if place == 0:
            end += KINDS[kind].bits
        state = int(("00000000" + bits[:end])[-8:], 2)
        values.append(float(tables[FIRST_TABLE[kind] + place, state]))
    return values


def bits_of(row: Tensor) -> str:
    """The bits of bytes, the high one of each first."""
    return "".join(f"{byte:08b}" for byte in row.tolist())


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def skewed_table(n: int, d: int, seed: int = 0) -> Tensor:
    """A table with a mean, a falling spectrum and a rotation."""
    rotation = torch.linalg.qr(gaussian(d, d, seed=seed + 1))[0]
    return gaussian(n, d, seed=seed) * torch.linspace(2, 0.2, d) @ rotation + 0.3


def falling_weights(n: int) -> Tensor:
    """Weights as unequal as those of words."""
    return 1 / (1 + torch.arange(n, dtype=torch.float64)) ** 0.5


def coded(n: int = 300, d: int = 12, classes: int = 4, decoders: int = 1, bits: float = 5.0) -> CodedMatrix:
    """A small coded table of several classes."""
    return fit_coded(skewed_table(n, d), int(n * d * bits / 8), falling_weights(n), classes=classes, decoders=decoders)


def embedding_of(coded: CodedMatrix, **options: Any) -> CodedEmbedding:
    """An embedding with these bytes."""
    embedding = CodedEmbedding(coded.shape, **options)
    embedding.set_stored(coded.stored)
    return embedding


def rebuilt(coded: CodedMatrix) -> Tensor:
    """The table that these bytes stand for."""
    return embedding_of(coded).dense_weight()


def relative_error(table: Tensor, other: Tensor) -> float:
    """Squared, over the squared norm of the first."""
    table, other = table.double(), other.double()
    return float((other - table).square().sum() / table.square().sum())


def row_bits(kinds: Tensor) -> int:
    """Bits of a row whose coordinates have these kinds, (r,)."""
    counts = torch.bincount(kinds.long(), minlength=len(KINDS)).tolist()
    return sum(-(-count // kind.values) * kind.bits for count, kind in zip(counts, KINDS, strict=True))


def clusters(codes: str, affine: bool, ranks: tuple[int, ...] = (5, 2, 4, 3)) -> CodedMatrix:
    """300 rows in three clusters and an empty one, coded in integers."""
    table, labels = skewed_table(300, ODD), torch.arange(300) % 3
    bases = torch.linalg.qr(gaussian(4, ODD, 5, seed=1))[0].mT.contiguous()  # the last cluster is empty
    means = gaussian(4, ODD, seed=2) if affine else None
    return code_clusters(table, labels, bases=bases, means=means, ranks=list(ranks), codes=codes)


def long_classes() -> CodedMatrix:
    """Classes of some thousands of rows, whose logits are added up in pieces and by wide windows."""
    return fit_coded(skewed_table(20_000, ODD), 20_000 * 3, falling_weights(20_000), classes=3)


# Tables of every kind that readers may meet.
MAKERS: dict[str, Callable[[], CodedMatrix]] = {
    "auto": lambda: coded(d=ODD),
    "few bits": lambda: coded(d=ODD, bits=1.0),
    "some rows without codes": lambda: coded(n=2000, d=ODD, classes=8, bits=0.5),
    "own decoders": lambda: coded(d=ODD, classes=5, decoders=3),
    "one class": lambda: coded(n=77, d=ODD, classes=1),
    "int8": lambda: clusters("int8", affine=False),
    "int4, affine": lambda: clusters("int4", affine=True),
    "long classes": long_classes,
}
