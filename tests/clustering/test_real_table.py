"""The claims about the solver, on MiniLM's real table."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from projclust import ProjectiveClustering
from projclust.shapes import FactoredShape


@pytest.mark.parametrize(("j", "most"), [(40, 0.587), (216, 0.133)])
def test_error_on_minilm_beats_svd_and_the_random_partition(minilm_table: Tensor, j: int, most: float) -> None:
    n, d = minilm_table.shape
    total = minilm_table.double().square().sum().item()
    fitted = ProjectiveClustering(5, j).fit(minilm_table)
    error = fitted.inertia_ / total
    assert error <= most
    equal_size = (n * j + 5 * j * d) // (n + d)
    assert error < ProjectiveClustering(1, equal_size, method="svd").fit(minilm_table).inertia_ / total
    assert error < ProjectiveClustering(5, j, method="random").fit(minilm_table).inertia_ / total
    history = fitted.cost_history_
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(history))
    assert torch.equal(fitted.predict(minilm_table), fitted.labels_)


def test_forty_percent_off_is_rank_216(minilm_table: Tensor) -> None:
    n, d = minilm_table.shape
    shape = FactoredShape(n, d, k=5, j=1)
    assert shape.largest_rank(lambda shape: shape.compression_rate >= 0.4) == 216
