import pytest

from projclust import ProjclustError
from projclust.recipes.recipe import Recipe
from projclust.shapes import DenseShape, FactoredShape, parse_size


def rank_for_ratio(ratio: float, n: int, d: int, k: int, affine: bool = False) -> int:
    rank = Recipe(k=k, ratio=ratio, affine=affine).settled(DenseShape(n, d)).j
    assert rank is not None
    return rank


def test_parameters_by_hand() -> None:
    assert FactoredShape(10, 4, k=2, j=1).parameters == 10 + 8
    assert FactoredShape(10, 4, k=2, j=1, affine=True).parameters == 10 + 8 + 8
    assert FactoredShape(10, 4, k=2, j=2, ranks=(2, 1), sizes=(3, 7)).parameters == 3 * 2 + 7 + 3 * 4
    assert FactoredShape(10, 4, k=2, j=1).compression_rate == pytest.approx(1 - 18 / 40)
    assert FactoredShape(30522, 384, k=5, j=40).compression_rate == 1 - 1297680 / 11720448


def test_bytes_by_hand() -> None:
    assert DenseShape(10, 4, "bfloat16").bytes == 80
    assert FactoredShape(10, 4, k=2, j=1).bytes("float32") == 4 * 18 + 10
    assert FactoredShape(10, 4, k=2, j=1).bytes("float16") == 2 * 18 + 10
    assert FactoredShape(1000, 4, k=300, j=1).bytes("float32") == 4 * (1000 + 1200) + 4 * 1000  # ids of 4 bytes
    # Codes, ids of half a byte, kinds, deviations, gains, decoders and their scales.
    assert FactoredShape(10, 4, k=2, j=2).bytes("int8") == 10 * 2 + 5 + 2 + 4 + 4 + 2 * 2 * 4 + 2 * 2 * 2
    assert FactoredShape(10, 4, k=2, j=2).bytes("int4") == 10 + 5 + 2 + 4 + 4 + 2 * 2 * 4 + 2 * 2 * 2


@pytest.mark.parametrize(
    ("text", "size"), [("400KB", 400_000), ("1.5MB", 1_500_000), ("2MiB", 2**21), ("800000", 800_000), (".5k", 500)]
)
def test_sizes_in_words(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("n", "ratio", "k", "rank"),
    [
        (30522, 0.40, 1, 449),  # DistilBERT, the ranks of the paper's settings
        (30522, 0.40, 2, 438),
        (30522, 0.40, 4, 418),
        (30522, 0.40, 5, 409),
        (50265, 0.43, 1, 431),  # RoBERTa
        (50265, 0.43, 5, 406),
    ],
)
def test_ranks_of_the_papers_models(n: int, ratio: float, k: int, rank: int) -> None:
    assert rank_for_ratio(ratio, n, 768, k) == rank
    rates = [FactoredShape(n, 768, k=k, j=j).compression_rate for j in (rank, rank + 1)]
    assert rates[0] >= ratio > rates[1]


def test_means_cost_rank() -> None:
    assert rank_for_ratio(0.4, 100, 64, 8, affine=True) == 5 == rank_for_ratio(0.4, 100, 64, 8) - 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_refuses_ratios_outside_zero_and_one(ratio: float) -> None:
    with pytest.raises(ProjclustError, match="between 0 and 1"):
        rank_for_ratio(ratio, 100, 10, 2)


def test_refuses_a_ratio_no_rank_meets_and_stays_below_the_width() -> None:
    with pytest.raises(ProjclustError, match="no room"):
        rank_for_ratio(0.999, 100, 10, 2)
    assert rank_for_ratio(1e-9, 10**9, 10, 1) == 9
