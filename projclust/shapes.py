"""Tables as pure numbers, before any exists: the tensors that are stored, their parameters, their bytes, their limits.

No torch: a damaged config.json may ask for absurd tables, and sizes are asked for before anything is loaded.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from operator import mul

from projclust.errors import OptionError, ProjclustError
from projclust.options import FLOAT_BYTES, Codes

# Class ids are bytes.
MOST_CLASSES = 256

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class DenseShape:
    """A dense table of n rows and d columns, with entries of a dtype named as "float32"."""

    n: int
    d: int
    dtype: str = "float32"

    @property
    def parameters(self) -> int:
        """The number of entries."""
        return self.n * self.d

    @property
    def bytes(self) -> int:
        """The bytes of all entries."""
        return self.parameters * FLOAT_BYTES[self.dtype]

    def bytes_for_bits(self, bits: float) -> int:
        """The bytes that so many bits for each entry allow."""
        return int(bits * self.parameters / 8 + 1e-6)

    def bits_for_bytes(self, count: int) -> float:
        """Bits for each entry, of a stored table of so many bytes."""
        return 8 * count / self.parameters


@dataclass(frozen=True)
class FactoredShape:
    """A table of n rows and d columns as coefficients in k subspaces.

    Attributes:
        k: number of subspaces.
        j: their rank, where they have no `ranks` of their own.
        affine: whether they have means.
        ranks, sizes: the rank and the rows of each cluster, where ranks are unequal.
        added: rows that follow these n and are dense: those of tokens that a vocabulary was given later.

    Raises:
        ProjclustError: unequal ranks and sizes of clusters are not one for each cluster, or sizes not n in all.
    """

    n: int
    d: int
    k: int
    j: int
    affine: bool = False
    ranks: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None
    added: int = 0

    def __post_init__(self) -> None:
        ranks, sizes = self.ranks or (), self.sizes or ()
        if (ranks or sizes) and not (len(ranks) == len(sizes) == self.k and sum(sizes) == self.n):
            raise ProjclustError(
                f"unequal ranks are one for each of {self.k} clusters, and so are sizes, {self.n} rows together"
            )

    @property
    def height(self) -> int:
        """All rows."""
        return self.n + self.added

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored tensors of the n rows, with means or without."""
        shared = {"means": (self.k, self.d), "clusters": (self.n,)}
        if self.ranks is None or self.sizes is None:
            return {"weight": (self.n, self.j), "bases": (self.k, self.j, self.d), **shared}
        return {"weight": (sum(map(mul, self.sizes, self.ranks)),), "bases": (sum(self.ranks), self.d), **shared}

    @property
    def parameters(self) -> int:
        """nj + kjd, and kd more for means: cluster ids are not counted, as in the paper."""
        weight, bases = self.stored["weight"], self.stored["bases"]
        return prod(weight) + prod(bases) + self.k * self.d * self.affine

    @property
    def compression_rate(self) -> float:
        """The paper's: the fraction of the parameters that is removed."""
        return 1 - self.parameters / (self.n * self.d)

    def bytes(self, codes: str) -> int:
        """Bytes in the file, cluster ids and all, with float or integer codes."""
        bits = None if codes in FLOAT_BYTES else Codes(codes).bits
        if bits is None:
            return self.parameters * FLOAT_BYTES[codes] + self.n * (1 if self.k <= 256 else 4)
        n, k, j = self.n, self.k, self.j
        size = n * -(-j * bits // 8)
        return CodedShape(
            n, self.d, classes=k, rank=j, decoders=k, decoder_bits=8, affine=self.affine, coded=k * j, code_bytes=size
        ).bytes

    def largest_rank(self, fits: "Callable[[FactoredShape], bool]") -> int | None:
        """The largest rank below d with which the shape fits; None where none does."""
        return largest(self.d - 1, lambda j: fits(replace(self, j=j)))


@dataclass(frozen=True)
class CodedShape:
    """A coded table of n rows and d columns.

    Attributes:
        classes: C, the classes of rows; at most 256.
        rank: r, the coordinates a row can have.
        decoders: G, matrices that make rows of coordinates: 1 that all classes share, or C, one for each.
        decoder_bits: the bits of their entries, 4 or 8.
        affine: whether classes have means.
        coded: coordinates with codes, summed over the classes.
        code_bytes: how many the codes of all rows take.
        added: rows that follow these n and are dense: those of tokens that a vocabulary was given later.
    """

    n: int
    d: int
    classes: int
    rank: int
    decoders: int
    decoder_bits: int
    affine: bool
    coded: int
    code_bytes: int
    added: int = 0

    @property
    def height(self) -> int:
        """All rows."""
        return self.n + self.added

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored tensors of the n rows, all of uint8."""
        id_bytes = (self.n + 1) // 2 if self.classes <= 16 else self.n
        shapes = {
            "weight": (self.code_bytes,),
            "classes": (id_bytes,),
            "kinds": (self.classes, (self.rank + 1) // 2),
            "deviations": (self.coded,),
            "gains": (self.classes, 2),
            "means": (self.classes, self.d),
            "mean_scales": (self.classes, 2),
            "decoder": (self.decoders, self.rank, -(-self.d * self.decoder_bits // 8)),
            "decoder_scales": (self.decoders, self.rank, 2),
        }
        absent = ["classes"] * (self.classes == 1) + ["means", "mean_scales"] * (not self.affine)
        return {name: shape for name, shape in shapes.items() if name not in absent}

    @property
    def bytes(self) -> int:
        """Bytes of everything stored."""
        return sum(map(prod, self.stored.values()))


def largest(most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number from `most` down to 1 that fits; None where none does."""
    return next((number for number in range(most, 0, -1) if fits(number)), None)


def parse_size(text: str) -> int:
    """Bytes of a size such as 400KB, 1.5MB, 2MiB or 800000; what is none is refused."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmg]?i?b?)\s*", text, re.IGNORECASE | re.ASCII)
    unit = found.group(2).lower().removesuffix("b") if found else "?"
    if found is None or unit not in _UNITS:
        raise OptionError(f"`size` takes bytes as 400KB, 1.5MB, 2MiB or 800000, not {text!r}")
    size = int(float(found.group(1)) * _UNITS[unit])
    if size < 1:
        raise OptionError(f"`size` must be at least one byte, not {text!r}")
    return size
