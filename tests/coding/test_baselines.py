import sys

import pytest
import torch
from torch import Tensor

from projclust import ProjclustError
from projclust.coding.baseline_rounding import CLIPPING, round_groups
from projclust.coding.baselines import Baseline, baseline_bits, baseline_table

FIXED = [Baseline.INT8, Baseline.INT4, Baseline.INT3, Baseline.INT2, Baseline.NF4]
FREE = [baseline for baseline in Baseline if baseline not in FIXED]


@pytest.fixture(scope="module")
def rows(minilm_table: Tensor) -> Tensor:
    return minilm_table[:4000].float()


def random_table(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(7))


def relative_error(table: Tensor, rebuilt: Tensor, weights: Tensor | None = None) -> float:
    errors, squares = (rebuilt - table).square().sum(1), table.square().sum(1)
    if weights is not None:
        errors, squares = errors * weights, squares * weights
    return (errors.sum() / squares.sum()).item()


@pytest.mark.parametrize(
    ("baseline", "levels", "scale"),
    [
        (Baseline.INT8, [-128.0, 127.0, 5.0, 0.0], 0.25),
        (Baseline.INT8, [128.0, -127.0, 1.0, 64.0], 0.25),
        (Baseline.INT4, [-8.0, 7.0, 3.0, 0.0, -1.0], 0.5),
        (Baseline.INT4, [8.0, -7.0, 3.0, 0.0, -1.0], 0.5),
        (Baseline.INT3, [-4.0, 3.0, 2.0, 1.0, 0.0], 0.5),
        (Baseline.INT2, [-1.5, 1.5, 0.5, -0.5], 2.0),
        (Baseline.NF4, [-1.0, 1.0, 0.0, 0.7229568362236023, -0.09105003625154495], 4.0),
    ],
)
def test_numbers_on_the_levels_are_exact(baseline: Baseline, levels: list[float], scale: float) -> None:
    table = torch.tensor(levels).repeat(2, 20)[:, :70] * scale  # two full groups of 32 and a short one
    table[1] *= 2
    assert torch.equal(baseline_table(baseline, table).table, table)


def test_rounding_by_hand() -> None:
    table = torch.tensor([[-128.0, 3.4, 3.6, -0.6], [0.0, 0.0, 0.0, 0.0]])
    assert baseline_table(Baseline.INT8, table).table.tolist() == [[-128.0, 3.0, 4.0, -1.0], [0.0] * 4]
    # The nearest levels of 0.12 and -0.5 times the largest are 0.0796 and -0.5251.
    rebuilt = baseline_table(Baseline.NF4, torch.tensor([[10.0, 1.2, -5.0]])).table
    assert torch.allclose(rebuilt, torch.tensor([[10.0, 0.7958, -5.2507]]), atol=1e-4)


def test_scales_are_rounded_to_half_precision() -> None:
    table = torch.full((1, 1), 1 / 3)
    rebuilt = baseline_table(Baseline.NF4, table).table
    assert rebuilt.item() == table.half().item() != table.item()


def test_every_group_has_its_own_scale() -> None:
    table = torch.ones(1, 40)
    table[0, 32:] = 1000.0
    assert torch.equal(baseline_table(Baseline.INT4, table).table.unique(), torch.tensor([1.0, 1000.0]))


def test_clipping_lowers_the_error_of_a_group_with_an_outlier() -> None:
    table = torch.tensor([[4.0] + [1.0, -1.0] * 15])
    # Unclipped, the levels are 4 / 3 and 4; the 30 others would be off by a third each.
    assert (baseline_table(Baseline.INT2, table).table - table).square().sum() < 30 / 9 - 0.5


def test_a_heavy_column_is_not_clipped() -> None:
    values = torch.tensor([[4.0] + [1.0, -1.0] * 15])
    assert round_groups(values, 2, CLIPPING)[0, 0] < 3.5
    weights = torch.tensor([100.0] + [1.0] * 30)
    assert round_groups(values, 2, CLIPPING, weights)[0, 0] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    ("baseline", "d", "row_bytes"),
    [
        (Baseline.INT8, 10, 10 + 2),
        (Baseline.INT4, 64, 32 + 2 * 2),
        (Baseline.INT4, 33, 17 + 2 * 2),
        (Baseline.INT3, 32, 12 + 2),
        (Baseline.INT3, 35, 14 + 2 * 2),  # 105 bits
        (Baseline.INT2, 384, 96 + 12 * 2),
        (Baseline.NF4, 64, 32 + 2),
        (Baseline.NF4, 65, 33 + 2 * 2),
    ],
)
def test_bytes_of_the_fixed_sizes(baseline: Baseline, d: int, row_bytes: int) -> None:
    assert baseline_table(baseline, random_table(6, d)).bytes == 6 * row_bytes
    assert baseline_bits(baseline, 6, d) == pytest.approx(8 * row_bytes / d)


# Of 300 rows and 20 columns: the bytes with 3 sub-vectors or of rank 3, and with or of 4.
BYTES = {
    Baseline.SVD_FLOAT16: (2 * 3 * 320, 2 * 4 * 320),
    Baseline.SVD_INT8: (300 * 3 + 3 * 20 + 2 * 3 + 2 * 3, 300 * 4 + 4 * 20 + 2 * 4 + 2 * 4),
    Baseline.SVD_INT4: (300 * 2 + 3 * 20 + 2 * 3 + 2 * 3, 300 * 2 + 4 * 20 + 2 * 4 + 2 * 4),
    Baseline.PQ: (300 * 3 + 256 * 20 * 2, 300 * 4 + 256 * 20 * 2),
    Baseline.PROJECTIVE: (
        300 + 300 * 3 + 5 * 3 * 20 * 2 + 5 * 3 * 2,
        300 + 300 * 4 + 5 * 4 * 20 * 2 + 5 * 4 * 2,
    ),
}


@pytest.mark.parametrize("baseline", FREE)
def test_free_sizes_meet_the_bits_from_below(baseline: Baseline) -> None:
    table = random_table(300, 20)
    three, four = BYTES[baseline]
    assert baseline_bits(baseline, 300, 20) is None
    assert baseline_table(baseline, table, 8 * three / 6000).bytes == three
    assert baseline_table(baseline, table, 8 * (four - 1) / 6000).bytes == three
    assert baseline_table(baseline, table, 8 * four / 6000).bytes == four


def test_bytes_of_pq_with_fewer_rows_than_256() -> None:
    # 100 rows train 64 centroids: 3 codes of 6 bits take 3 bytes.
    assert baseline_table(Baseline.PQ, random_table(100, 7), 8 * 1250 / 700).bytes == 100 * 3 + 64 * 7 * 2


def test_pq_with_as_many_centroids_as_distinct_parts_is_exact() -> None:
    kinds = torch.tensor([[0.0, 0.0, 1.0, 2.0, 4.0], [8.0, -8.0, 3.0, 1.0, 0.0]])
    table = kinds[torch.arange(8) % 2]
    assert torch.equal(baseline_table(Baseline.PQ, table, 100.0).table, table)


def test_centroids_are_rounded_to_half_precision() -> None:
    table = torch.full((4, 2), 1 / 3)
    assert torch.equal(baseline_table(Baseline.PQ, table, 100.0).table, table.half().float())


@pytest.mark.parametrize("baseline", [Baseline.SVD_FLOAT16, Baseline.SVD_INT8, Baseline.PROJECTIVE])
def test_rows_in_a_subspace_of_the_rank_are_rebuilt(baseline: Baseline) -> None:
    table = random_table(300, 2) @ random_table(2, 20)
    assert relative_error(table, baseline_table(baseline, table, 8 * BYTES[baseline][0] / 6000).table) < 1e-4


def test_errors_on_minilm_fall_with_bits(rows: Tensor) -> None:
    def errors(baseline: Baseline, *sizes: float) -> list[float]:
        return [relative_error(rows, baseline_table(baseline, rows, bits).table) for bits in sizes]

    fixed = [relative_error(rows, baseline_table(baseline, rows).table) for baseline in FIXED]
    int8, int4, int3, int2, nf4 = fixed
    assert int8 < 1e-4
    assert int4 < 0.0075
    assert int3 < 0.03
    assert int2 < 0.12
    assert int4 < nf4 < 0.01
    for baseline in FREE:
        few, more, most = errors(baseline, 1.06, 1.1, 1.2)
        assert most < more < few < 1, baseline


def test_a_decomposition_with_finer_coefficients_has_a_lower_rank(rows: Tensor) -> None:
    errors = [
        relative_error(rows, baseline_table(baseline, rows, 2.0).table)
        for baseline in (Baseline.SVD_FLOAT16, Baseline.SVD_INT8, Baseline.SVD_INT4)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_svd_float16_is_as_good_as_the_best_decomposition_of_its_rank(rows: Tensor) -> None:
    built = baseline_table(Baseline.SVD_FLOAT16, rows, 2.0)
    rank = built.bytes // (2 * (4000 + 384))
    spectrum = torch.linalg.svdvals(rows.double()).square()
    assert relative_error(rows, built.table) == pytest.approx((spectrum[rank:].sum() / spectrum.sum()).item(), rel=1e-4)


@pytest.mark.parametrize("baseline", FREE)
def test_rows_of_weight_are_rebuilt_better(baseline: Baseline, rows: Tensor) -> None:
    rows = rows[:1500]
    weights = torch.where(torch.arange(1500) % 10 == 0, 1.0, 0.01)
    plain = baseline_table(baseline, rows, 3.0)
    weighted = baseline_table(baseline, rows, 3.0, weights)
    assert weighted.bytes == plain.bytes
    assert relative_error(rows, weighted.table, weights) < 0.95 * relative_error(rows, plain.table, weights)
    assert torch.equal(baseline_table(baseline, rows, 3.0, 100 * weights).table, weighted.table)


@pytest.mark.parametrize("baseline", [Baseline.PQ, Baseline.PROJECTIVE])
def test_the_seed_decides(baseline: Baseline) -> None:
    table = random_table(600, 16)
    first, again, other = (baseline_table(baseline, table, 20.0, seed=seed).table for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("baseline", list(Baseline))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_rows_of_zeros(baseline: Baseline, dtype: torch.dtype) -> None:
    table = random_table(40, 37).to(dtype)
    table[::3] = 0
    weights = torch.ones(40)
    weights[1::4] = 0
    built = baseline_table(baseline, table, 60.0, weights)
    assert built.table.dtype == torch.float32
    assert built.table.shape == (40, 37)
    assert torch.isfinite(built.table).all()
    assert not built.table[3].any() or baseline is Baseline.PQ
    assert relative_error(table.float(), built.table, weights) < 0.15
    zeros = baseline_table(baseline, torch.zeros_like(table), 60.0)
    assert not zeros.table.any()


@pytest.mark.parametrize(
    ("baseline", "bits", "message"),
    [
        (Baseline.INT4, 4.0, "int4 takes 4.5 bits per weight of this table, not 4"),
        (Baseline.NF4, 4.2, "nf4 takes 4.25 bits"),
        (Baseline.PQ, None, "pq can have any size: give the bits per weight"),
        (Baseline.PQ, 7.0, "pq takes at least 8.383 bits"),  # 31 codes of 4 bits in a byte each, 16 * 64 numbers
        (Baseline.SVD_INT8, 0.1, "svd-int8 takes at least 0.3992"),  # 31 + 64 codes, two scales
        (Baseline.PROJECTIVE, -1.0, "projective takes at least"),
        (Baseline.PROJECTIVE, float("nan"), "projective takes at least"),
    ],
)
def test_sizes_that_cannot_be(baseline: Baseline, bits: float | None, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        baseline_table(baseline, random_table(31, 64), bits)


def test_a_fixed_size_may_be_asked_for_by_its_own_bits() -> None:
    table = random_table(3, 30)
    bits = baseline_bits(Baseline.INT3, 3, 30)
    assert torch.equal(baseline_table(Baseline.INT3, table, bits).table, baseline_table(Baseline.INT3, table).table)


@pytest.mark.parametrize(
    ("table", "weights", "message"),
    [
        (torch.zeros(3), None, "must be a matrix of floats"),
        (torch.zeros(0, 3), None, "must be a matrix of floats"),
        (torch.zeros(3, 2, dtype=torch.int64), None, "must be a matrix of floats"),
        (torch.tensor([[1.0], [torch.nan]]), None, "NaN or infinite"),
        (torch.ones(3, 2), torch.ones(2), r"shape \(3,\), not \(2,\)"),
        (torch.ones(2, 2), torch.tensor([1.0, -1.0]), "not negative"),
        (torch.ones(2, 2), torch.zeros(2), "not all zero"),
        (torch.ones(2, 2), torch.tensor([1.0, torch.inf]), "finite"),
    ],
)
def test_unusable_tables_and_weights(table: Tensor, weights: Tensor | None, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        baseline_table(Baseline.INT8, table, None, weights)


@pytest.mark.parametrize("baseline", [Baseline.SVD_INT4, Baseline.PROJECTIVE])
def test_one_column_has_no_subspace(baseline: Baseline) -> None:
    with pytest.raises(ProjclustError, match="more than one column"):
        baseline_table(baseline, random_table(9, 1), 100.0)


def test_projective_needs_five_rows() -> None:
    with pytest.raises(ProjclustError, match="k=5 subspaces need at least as many rows"):
        baseline_table(Baseline.PROJECTIVE, random_table(4, 8), 500.0)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ProjclustError, match=r"pip install 'projclust\[baselines\]'"):
        baseline_table(Baseline.PQ, random_table(300, 8), 100.0)
