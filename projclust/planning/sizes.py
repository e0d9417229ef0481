"""How many parameters a factorised table has, and the rank that meets a target."""

from projclust.errors import ProjclustError


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
