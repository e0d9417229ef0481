import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from projclust import ProjclustError
from projclust.coding.integers import CLIPPING
from projclust.options import Codes
from projclust.recipes.recipe import Recipe
from projclust.recipes.rounding import round_groups
from projclust.shapes import DenseShape

FIXED = ["int8", "int4", "int3", "int2", "nf4"]
FREE = ["svd-float16", "svd-int8", "svd-int4", "pq"]


@dataclass(frozen=True)
class Built:
    """A table as a baseline would store and rebuild it."""

    table: Tensor
    bytes: int


def baseline_table(
    method: str, table: Tensor, bits: float | None = None, weights: Tensor | None = None, seed: int = 0
) -> Built:
    """A baseline at a size, given in bits for each entry."""
    size = None if bits is None or method in FIXED else str(int(bits * table.numel() / 8 + 1e-6))
    codes = Codes.INT8 if method == "projective" else None
    fitted = Recipe(method=method, size=size, codes=codes, seed=seed).fit(table, weights)
    return Built(fitted.rows(torch.arange(len(table))), fitted.bytes)


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
        ("int8", [-128.0, 127.0, 5.0, 0.0], 0.25),
        ("int8", [128.0, -127.0, 1.0, 64.0], 0.25),
        ("int4", [-8.0, 7.0, 3.0, 0.0, -1.0], 0.5),
        ("int4", [8.0, -7.0, 3.0, 0.0, -1.0], 0.5),
        ("int3", [-4.0, 3.0, 2.0, 1.0, 0.0], 0.5),
        ("int2", [-1.5, 1.5, 0.5, -0.5], 2.0),
        ("nf4", [-1.0, 1.0, 0.0, 0.7229568362236023, -0.09105003625154495], 4.0),
    ],
)
def test_numbers_on_the_levels_are_exact(baseline: str, levels: list[float], scale: float) -> None:
    table = torch.tensor(levels).repeat(2, 20)[:, :70] * scale  # two full groups of 32 and a short one
    table[1] *= 2
    assert torch.equal(baseline_table(baseline, table).table, table)


def test_rounding_by_hand() -> None:
    table = torch.tensor([[-128.0, 3.4, 3.6, -0.6], [0.0, 0.0, 0.0, 0.0]])
    assert baseline_table("int8", table).table.tolist() == [[-128.0, 3.0, 4.0, -1.0], [0.0] * 4]
    # The nearest levels of 0.12 and -0.5 times the largest are 0.0796 and -0.5251.
    rebuilt = baseline_table("nf4", torch.tensor([[10.0, 1.2, -5.0]])).table
    assert torch.allclose(rebuilt, torch.tensor([[10.0, 0.7958, -5.2507]]), atol=1e-4)


def test_scales_are_rounded_to_half_precision() -> None:
    table = torch.full((1, 1), 1 / 3)
    rebuilt = baseline_table("nf4", table).table
    assert rebuilt.item() == table.half().item() != table.item()


def test_every_group_has_its_own_scale() -> None:
    table = torch.ones(1, 40)
    table[0, 32:] = 1000.0
    assert torch.equal(baseline_table("int4", table).table.unique(), torch.tensor([1.0, 1000.0]))


def test_clipping_lowers_the_error_of_a_group_with_an_outlier() -> None:
    table = torch.tensor([[4.0] + [1.0, -1.0] * 15])
    # Unclipped, the levels are 4 / 3 and 4; the 30 others would be off by a third each.
    assert (baseline_table("int2", table).table - table).square().sum() < 30 / 9 - 0.5


def test_a_heavy_column_is_not_clipped() -> None:
    values = torch.tensor([[4.0] + [1.0, -1.0] * 15])
    assert round_groups(values, 2, CLIPPING)[0, 0] < 3.5
    weights = torch.tensor([100.0] + [1.0] * 30)
    assert round_groups(values, 2, CLIPPING, weights)[0, 0] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    ("baseline", "d", "row_bytes"),
    [
        ("int8", 10, 10 + 2),
        ("int4", 64, 32 + 2 * 2),
        ("int4", 33, 17 + 2 * 2),
        ("int3", 32, 12 + 2),
        ("int3", 35, 14 + 2 * 2),  # 105 bits
        ("int2", 384, 96 + 12 * 2),
        ("nf4", 64, 32 + 2),
        ("nf4", 65, 33 + 2 * 2),
    ],
)
def test_bytes_of_the_fixed_sizes(baseline: str, d: int, row_bytes: int) -> None:
    assert baseline_table(baseline, random_table(6, d)).bytes == 6 * row_bytes
    assert Recipe(method=baseline).stored_bytes(DenseShape(6, d)) == 6 * row_bytes


# Of 300 rows and 20 columns: the bytes with 3 sub-vectors or of rank 3, and with or of 4.
BYTES = {
    "svd-float16": (2 * 3 * 320, 2 * 4 * 320),
    "svd-int8": (300 * 3 + 3 * 20 + 2 * 3 + 2 * 3, 300 * 4 + 4 * 20 + 2 * 4 + 2 * 4),
    "svd-int4": (300 * 2 + 3 * 20 + 2 * 3 + 2 * 3, 300 * 2 + 4 * 20 + 2 * 4 + 2 * 4),
    "pq": (300 * 3 + 256 * 20 * 2, 300 * 4 + 256 * 20 * 2),
}


@pytest.mark.parametrize("baseline", FREE)
def test_free_sizes_meet_the_bits_from_below(baseline: str) -> None:
    table = random_table(300, 20)
    three, four = BYTES[baseline]
    assert baseline_table(baseline, table, 8 * three / 6000).bytes == three
    assert baseline_table(baseline, table, 8 * (four - 1) / 6000).bytes == three
    assert baseline_table(baseline, table, 8 * four / 6000).bytes == four


def test_bytes_of_pq_with_fewer_rows_than_256() -> None:
    # 100 rows train 64 centroids: 3 codes of 6 bits take 3 bytes.
    assert baseline_table("pq", random_table(100, 7), 8 * 1250 / 700).bytes == 100 * 3 + 64 * 7 * 2


def test_pq_with_as_many_centroids_as_distinct_parts_is_exact() -> None:
    kinds = torch.tensor([[0.0, 0.0, 1.0, 2.0, 4.0], [8.0, -8.0, 3.0, 1.0, 0.0]])
    table = kinds[torch.arange(8) % 2]
    assert torch.equal(baseline_table("pq", table, 100.0).table, table)


def test_centroids_are_rounded_to_half_precision() -> None:
    table = torch.full((4, 2), 1 / 3)
    assert torch.equal(baseline_table("pq", table, 100.0).table, table.half().float())


@pytest.mark.parametrize("baseline", ["svd-float16", "svd-int8"])
def test_rows_in_a_subspace_of_the_rank_are_rebuilt(baseline: str) -> None:
    table = random_table(300, 2) @ random_table(2, 20)
    assert relative_error(table, baseline_table(baseline, table, 8 * BYTES[baseline][0] / 6000).table) < 1e-4


def test_errors_on_minilm_fall_with_bits(rows: Tensor) -> None:
    def errors(baseline: str, *sizes: float) -> list[float]:
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
        for baseline in ("svd-float16", "svd-int8", "svd-int4")
    ]
    assert errors[0] > errors[1] > errors[2]


def test_svd_float16_is_as_good_as_the_best_decomposition_of_its_rank(rows: Tensor) -> None:
    built = baseline_table("svd-float16", rows, 2.0)
    rank = built.bytes // (2 * (4000 + 384))
    spectrum = torch.linalg.svdvals(rows.double()).square()
    assert relative_error(rows, built.table) == pytest.approx((spectrum[rank:].sum() / spectrum.sum()).item(), rel=1e-4)


@pytest.mark.parametrize("baseline", FREE)
def test_rows_of_weight_are_rebuilt_better(baseline: str, rows: Tensor) -> None:
    rows = rows[:1500]
    weights = torch.where(torch.arange(1500) % 10 == 0, 1.0, 0.01)
    plain = baseline_table(baseline, rows, 3.0)
    weighted = baseline_table(baseline, rows, 3.0, weights)
    assert weighted.bytes == plain.bytes
    assert relative_error(rows, weighted.table, weights) < 0.95 * relative_error(rows, plain.table, weights)
    assert torch.equal(baseline_table(baseline, rows, 3.0, 100 * weights).table, weighted.table)


@pytest.mark.parametrize("baseline", ["pq", "projective"])
def test_the_seed_decides(baseline: str) -> None:
    table = random_table(600, 16)
    first, again, other = (baseline_table(baseline, table, 20.0, seed=seed).table for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("baseline", [*FIXED, *FREE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_rows_of_zeros(baseline: str, dtype: torch.dtype) -> None:
    table = random_table(40, 37).to(dtype)
    table[::3] = 0
    weights = torch.ones(40)
    weights[1::4] = 0
    built = baseline_table(baseline, table, 60.0, weights)
    assert built.table.dtype == torch.float32
    assert built.table.shape == (40, 37)
    assert torch.isfinite(built.table).all()
    assert not built.table[3].any() or baseline == "pq"
    assert relative_error(table.float(), built.table, weights) < 0.15
    zeros = baseline_table(baseline, torch.zeros_like(table), 60.0)
    assert not zeros.table.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "int4", "bits": 4.0}, "int4 has one size, 4.5 bits: drop `bits`"),
        ({"method": "int3", "size": "1MB"}, "int3 has one size, 3.5 bits: drop `size`"),
        ({"method": "nf4", "bits": 4.2}, "nf4 has one size, 4.25 bits"),
        ({"method": "pq"}, "pq can have any size and needs a size, as in pq:bits=1"),
        ({"method": "pq", "bits": 7.0}, "pq takes at least 8.383 bits"),  # 31 codes in a byte each, 16 * 64 numbers
        ({"method": "svd-int8", "bits": 0.1}, "svd-int8 takes at least 0.3992"),  # 31 + 64 codes, two scales
        ({"method": "pq", "bits": -1.0}, "between 0 and 32"),
        ({"method": "pq", "bits": float("nan")}, "between 0 and 32"),
        ({"method": "pq", "k": 3}, "pq takes no options but `bits`: drop `k`"),
        ({"method": "int8", "codes": "int8"}, "drop `codes`"),
        ({"method": "magic"}, "must be one of projective, svd, random, int8"),
    ],
)
def test_sizes_and_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        Recipe(**options).fit(random_table(31, 64))


@pytest.mark.parametrize(
    ("table", "weights", "message"),
    [
        (torch.zeros(3), None, "two dimensions"),
        (torch.zeros(0, 3), None, "no rows or no columns"),
        (torch.tensor([[1.0], [torch.nan]]), None, "NaN or infinite"),
        (torch.ones(3, 2), torch.ones(2), r"shape \(3,\), not \(2,\)"),
        (torch.ones(2, 2), torch.tensor([1.0, -1.0]), "not negative"),
        (torch.ones(2, 2), torch.zeros(2), "positive, finite sum"),
        (torch.ones(2, 2), torch.tensor([1.0, torch.inf]), "finite"),
    ],
)
def test_unusable_tables_and_weights(table: Tensor, weights: Tensor | None, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        baseline_table("int8", table, None, weights)


def test_one_column_has_no_subspace() -> None:
    with pytest.raises(ProjclustError, match="more than one column"):
        baseline_table("svd-int4", random_table(9, 1), 100.0)


def test_projective_needs_five_rows() -> None:
    with pytest.raises(ProjclustError, match="k=5 subspaces need at least as many rows"):
        baseline_table("projective", random_table(4, 8), 500.0)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ProjclustError, match=r"pip install 'projclust\[baselines\]'"):
        baseline_table("pq", random_table(300, 8), 100.0)
