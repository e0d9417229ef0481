import pytest
import torch

from projclust import ProjclustError
from projclust.weights.importance import row_weights


def test_powers_scaled_to_one() -> None:
    frequencies = torch.tensor([8.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    assert row_weights(frequencies, 1 / 3).tolist() == pytest.approx([1, 0, 0.5, 0.25 ** (1 / 3)])
    assert row_weights(frequencies, 1).tolist() == [1, 0, 0.125, 0.25]
    assert row_weights(frequencies).tolist() == pytest.approx([1, 0, 0.125**0.4, 0.25**0.4])
    assert row_weights(frequencies * 1e300, 3).tolist() == pytest.approx([1, 0, 0.125**3, 0.25**3])


@pytest.mark.parametrize("exponent", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_other_powers(exponent: float) -> None:
    with pytest.raises(ProjclustError, match="greater than 0"):
        row_weights(torch.ones(2, dtype=torch.float64), exponent)
