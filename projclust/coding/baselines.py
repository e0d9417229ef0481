"""Known ways to store a table in few bits, to compare a coded table with at equal bytes.

None of them stores anything: each computes the rows that its decoder would rebuild, from the numbers as they would be
stored, and counts the bytes of all that it would need.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from projclust.clustering.estimator import ProjectiveClustering
from projclust.errors import ProjclustError

from .baseline_rounding import (
    CLIPPING,
    NO_CLIPPING,
    NORMAL_FLOAT_BITS,
    packed_bytes,
    round_groups,
    round_normal_float,
    round_rows,
    rounded_row_bytes,
    to_half,
)

_SUBSPACES = 5
_MOST_CENTROID_BITS = 8
_KMEANS_STEPS = 25
_GROUP = 32
_NORMAL_FLOAT_GROUP = 64
# The columns of coefficients are long, and their largest number is further out than that of a group of 32.
_COLUMN_CLIPPING = tuple(step / 20 for step in range(20, 1, -1))


class Baseline(str, Enum):
    """A known way to store a table; the ones with a number in their names have no other size."""

    INT8 = "int8"  # a scale for each row
    INT4 = "int4"  # the next three: a scale for every 32 columns of a row
    INT3 = "int3"
    INT2 = "int2"
    NF4 = "nf4"  # 16 levels of a normal distribution, a scale for every 64 columns of a row
    SVD_FLOAT16 = "svd-float16"  # the next three: row-weighted SVD, by how its coefficients are stored
    SVD_INT8 = "svd-int8"
    SVD_INT4 = "svd-int4"
    PQ = "pq"  # product quantization
    PROJECTIVE = "projective"  # 5 subspaces, int8 coefficients


# Of a code, or of a coefficient.
_CODE_BITS = {
    Baseline.INT4: 4,
    Baseline.INT3: 3,
    Baseline.INT2: 2,
    Baseline.SVD_FLOAT16: 16,
    Baseline.SVD_INT8: 8,
    Baseline.SVD_INT4: 4,
}


@dataclass(frozen=True)
class BaselineTable:
    """What a baseline makes of a table.

    Attributes:
        table: (n, d) float32 rebuilt rows.
        bytes: all that would be stored: codes, scales, codebooks, bases, cluster ids.
    """

    table: Tensor
    bytes: int


def baseline_bits(baseline: Baseline, n: int, d: int) -> float | None:
    """Stored bits per weight of an n x d table, or None for a baseline that can have any size."""
    match baseline:
        case Baseline.INT8:
            row_bytes = rounded_row_bytes(d, 8, d)
        case Baseline.INT4 | Baseline.INT3 | Baseline.INT2:
            row_bytes = rounded_row_bytes(d, _CODE_BITS[baseline], _GROUP)
        case Baseline.NF4:
            row_bytes = rounded_row_bytes(d, NORMAL_FLOAT_BITS, _NORMAL_FLOAT_GROUP)
        case _:
            return None
    return 8 * n * row_bytes / (n * d)


def baseline_table(
    baseline: Baseline,
    table: Tensor,
    bits: float | None = None,
    sample_weight: Tensor | None = None,
    seed: int = 0,
) -> BaselineTable:
    """The table as `baseline` would store and rebuild it.

    Args:
        baseline: the method.
        table: (n, d) of any float dtype.
        bits: most stored bits per weight, everything counted. Methods of free size take the largest rank or number of
            sub-vectors that fits; the others need it to be None or no less than their size.
        sample_weight: (n,) non-negative row weights, for the methods that fit something to all rows; default: all one.
        seed: of the random choices of pq and projective.

    Raises:
        ProjclustError: NaN or infinity in `table`, unusable weights, no `bits` where they are needed, or too few; faiss
            is not installed (pq only); fewer rows than subspaces (projective only).
    """
    weights = _checked(table, sample_weight)
    n, d = table.shape
    fixed = baseline_bits(baseline, n, d)
    if fixed is not None:
        if bits is not None and bits < fixed:
            raise ProjclustError(f"{baseline.value} takes {fixed:.4g} bits per weight of this table, not {bits:g}")
        return BaselineTable(_rounded(baseline, table), round(fixed * n * d / 8))
    if bits is None:
        raise ProjclustError(f"{baseline.value} can have any size: give the bits per weight")
    count = largest_count(baseline, n, d, bits)
    rows = table.float()
    match baseline:
        case Baseline.PQ:
            rebuilt = _product_quantized(rows, count, 2 ** _centroid_bits(n), weights, seed)
        case Baseline.PROJECTIVE:
            rebuilt = _projected(rows, count, weights, seed)
        case _:
            rebuilt = _decomposed(rows, count, _CODE_BITS[baseline], weights)
    return BaselineTable(rebuilt, stored_size(baseline, n, d, count))


def largest_count(baseline: Baseline, n: int, d: int, bits: float) -> int:
    """The largest number of sub-vectors, or rank (less than d), that takes at most `bits` per weight."""
    most = d if baseline is Baseline.PQ else d - 1
    for count in range(most, 0, -1):
        if 8 * stored_size(baseline, n, d, count) / (n * d) <= bits:
            return count
    if most == 0:
        raise ProjclustError(f"{baseline.value} needs a table of more than one column")
    least = 8 * stored_size(baseline, n, d, 1) / (n * d)
    raise ProjclustError(f"{baseline.value} takes at least {least:.4g} bits per weight of this table, not {bits:g}")


def stored_size(baseline: Baseline, n: int, d: int, count: int) -> int:
    """Bytes of a baseline of free size with `count` sub-vectors, or of rank `count`."""
    match baseline:
        case Baseline.PQ:
            code_bits = _centroid_bits(n)
            return n * packed_bytes(count, code_bits) + 2 * 2**code_bits * d
        case Baseline.PROJECTIVE:
            ids, scales, bases = n, 2 * _SUBSPACES * count, 2 * _SUBSPACES * count * d
            return ids + n * count + scales + bases
        case Baseline.SVD_FLOAT16:
            return 2 * count * (n + d)
        case _:
            scales = 2 * count + 2 * count  # of the coefficients' columns and of the basis's rows
            return n * packed_bytes(count, _CODE_BITS[baseline]) + count * d + scales


def _centroid_bits(n: int) -> int:
    """Bits of a code of pq: there are no more centroids than rows to train them on."""
    return min(_MOST_CENTROID_BITS, n.bit_length() - 1)


def _rounded(baseline: Baseline, table: Tensor) -> Tensor:
    match baseline:
        case Baseline.INT8:
            return round_rows(table, 8, table.shape[1], NO_CLIPPING)
        case Baseline.NF4:
            return round_normal_float(table, _NORMAL_FLOAT_GROUP)
        case _:
            return round_rows(table, _CODE_BITS[baseline], _GROUP, CLIPPING)


def _decomposed(table: Tensor, rank: int, code_bits: int, weights: Tensor | None) -> Tensor:
    basis = ProjectiveClustering(1, rank, method="svd").fit(table, weights).components_[0]
    stored = to_half(basis) if code_bits == 16 else round_groups(basis, 8, NO_CLIPPING)
    return in_subspace(table, stored, code_bits, weights)


def _projected(table: Tensor, rank: int, weights: Tensor | None, seed: int) -> Tensor:
    fit = ProjectiveClustering(_SUBSPACES, rank, seed=seed).fit(table, weights)
    rebuilt = torch.empty_like(table)
    for cluster in range(_SUBSPACES):
        members = (fit.labels_ == cluster).nonzero().squeeze(1)
        if len(members):
            own = None if weights is None else weights[members]
            rebuilt[members] = in_subspace(table[members], to_half(fit.components_[cluster]), 8, own)
    return rebuilt


def in_subspace(rows: Tensor, basis: Tensor, code_bits: int, weights: Tensor | None) -> Tensor:
    """(n, d) rows rebuilt from rounded coefficients in a `basis` (j, d) that is rounded, so not quite orthonormal."""
    coefficients = rows @ torch.linalg.pinv(basis.double()).to(rows.dtype)  # (n, j)
    if code_bits == 16:
        return to_half(coefficients) @ basis
    return round_groups(coefficients.T.contiguous(), code_bits, _COLUMN_CLIPPING, weights).T @ basis


def _product_quantized(table: Tensor, count: int, centroids: int, weights: Tensor | None, seed: int) -> Tensor:
    """(n, d) rows whose `count` parts are each replaced by the nearest centroid (Jégou et al., PAMI 2011).

    The parts' widths differ by one at most. faiss's own product quantizer knows no row weights; its k-means does.
    """
    try:
        import faiss
    except ImportError:
        raise ProjclustError("product quantization needs faiss: pip install 'projclust[baselines]'") from None
    rebuilt = torch.empty_like(table)
    row_weights = None if weights is None else weights.cpu().numpy()
    for part, into in zip(table.tensor_split(count, 1), rebuilt.tensor_split(count, 1), strict=True):
        vectors = part.cpu().contiguous().numpy()
        kmeans = faiss.Kmeans(
            vectors.shape[1],
            centroids,
            niter=_KMEANS_STEPS,
            seed=seed,
            # All rows, however few or many there are for each centroid.
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),
        )
        kmeans.train(vectors, weights=row_weights)
        codebook = to_half(torch.from_numpy(kmeans.centroids))
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(codebook.numpy())
        nearest = torch.from_numpy(index.search(vectors, 1)[1].squeeze(1))
        into.copy_(codebook[nearest])
    return rebuilt


def _checked(table: Tensor, sample_weight: Tensor | None) -> Tensor | None:
    """The row weights as float32 on the table's device; the largest is one."""
    if table.dim() != 2 or 0 in table.shape or not table.is_floating_point():
        raise ProjclustError(f"the table must be a matrix of floats, not {tuple(table.shape)} of {table.dtype}")
    # Block by block: isfinite of the whole would make temporaries larger than the table.
    if not all(torch.isfinite(block).all() for block in table.split(4096)):
        raise ProjclustError("the table has NaN or infinite entries")
    if sample_weight is None:
        return None
    if sample_weight.shape != (len(table),):
        raise ProjclustError(f"row weights must have shape ({len(table)},), not {tuple(sample_weight.shape)}")
    weights = sample_weight.to(table.device, torch.float64)
    if not (torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ProjclustError("row weights must be finite, not negative, and not all zero")
    return (weights / weights.max()).float()
