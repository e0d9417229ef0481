import pytest

from projclust import ProjclustError
from projclust.planning import compression_rate, parameter_count, rank_for_ratio


def test_parameters_by_hand() -> None:
    assert parameter_count(10, 4, 2, 1) == 10 + 8
    assert parameter_count(10, 4, 2, 1, affine=True) == 10 + 8 + 8
    assert compression_rate(10, 4, 2, 1) == pytest.approx(1 - 18 / 40)
    assert compression_rate(30522, 384, 5, 40) == 1 - 1297680 / 11720448


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
    assert compression_rate(n, 768, k, rank) >= ratio > compression_rate(n, 768, k, rank + 1)


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
