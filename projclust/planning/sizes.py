"""How many parameters and bytes a factorised table has, and the rank that meets a target."""

import re

from projclust.clustering.ranks import Ranks
from projclust.coding.stored import CodedShape
from projclust.errors import ProjclustError

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_INTEGER_BITS = {"int8": 8, "int4": 4}


def parameter_count(n: int, d: int, k: int, j: int, affine: bool = False) -> int:
    """Parameters of k subspaces of rank j for an n x d table: nj + kjd, and kd more for the means."""
    return n * j + k * j * d + (k * d if affine else 0)


def compression_rate(n: int, d: int, k: int, j: int, affine: bool = False) -> float:
    """The paper's compression rate: the fraction of parameters removed, cluster ids not counted."""
    return 1 - parameter_count(n, d, k, j, affine) / (n * d)


def rank_for_ratio(ratio: float, n: int, d: int, k: int, affine: bool = False) -> int:
    """The largest rank whose compression rate is at least `ratio`.

    Raises:
        ProjclustError: `ratio` is not between 0 and 1, or not even rank 1 meets it.
    """
    if not 0 < ratio < 1:
        raise ProjclustError(f"the ratio must lie between 0 and 1 (0.4 takes 40% off), not {ratio:g}")
    budget = (1 - ratio) * n * d - (k * d if affine else 0)
    rank = int(budget // (n + k * d))
    if rank < 1:
        raise ProjclustError(f"a ratio of {ratio:g} leaves no room for k={k} subspaces of rank 1: lower --ratio or --k")
    return rank


def stored_bytes(n: int, d: int, k: int, j: int, codes: str, affine: bool = False) -> int:
    """Bytes in the file of k subspaces of rank j, cluster ids and all, with float or integer `codes`."""
    if codes in _FLOAT_BYTES:
        return parameter_count(n, d, k, j, affine) * _FLOAT_BYTES[codes] + n * (1 if k <= 256 else 4)
    code_bytes = n * -(-j * _INTEGER_BITS[codes] // 8)
    return CodedShape(n, d, k, j, k, 8, affine, k * j, code_bytes).bytes


def bytes_for_bits(bits: float, n: int, d: int) -> int:
    """The bytes that so many bits for each entry of an n x d table allow."""
    return int(bits * n * d / 8 + 1e-6)


def rank_for_bytes(
    budget: int, n: int, d: int, k: int, codes: str, affine: bool = False, ranks: str = Ranks.EQUAL.value
) -> int:
    """The largest rank below d whose table takes at most `budget` bytes.

    Raises:
        ProjclustError: not even rank 1 does; or the ranks are not equal and the codes integers, which are stored as
            wide as the largest rank, known only after the fit.
    """
    if codes in _INTEGER_BITS and ranks != Ranks.EQUAL.value:
        raise ProjclustError(f"a size for codes {codes} needs equal ranks: give a rank for unequal ones")
    fitting = [j for j in range(1, d) if stored_bytes(n, d, k, j, codes, affine) <= budget]
    if not fitting:
        least = stored_bytes(n, d, k, 1, codes, affine)
        raise ProjclustError(f"{budget:,} bytes are too few for k={k} subspaces of {codes}: rank 1 takes {least:,}")
    return fitting[-1]


def parse_size(text: str) -> int:
    """Bytes of a size such as 400KB, 1.5MB, 2MiB or 800000.

    Raises:
        ProjclustError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmg]?i?b?)\s*", text, re.IGNORECASE)
    unit = found.group(2).lower().removesuffix("b") if found else "?"
    if found is None or unit not in _UNITS:
        raise ProjclustError(f"--size takes bytes as 400KB, 1.5MB, 2MiB or 800000, not {text!r}")
    size = int(float(found.group(1)) * _UNITS[unit])
    if size < 1:
        raise ProjclustError(f"--size must be at least one byte, not {text!r}")
    return size
