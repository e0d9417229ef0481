import pytest
import torch

from projclust.clustering.seeding import Init, first_labels, random_partition
from projclust.clustering.subspaces import squared_norms


def test_random_partition_is_equal_and_complete() -> None:
    labels = random_partition(103, 4, torch.Generator().manual_seed(0))
    assert sorted(torch.bincount(labels).tolist()) == [25, 26, 26, 26]


def test_spherical_kmeans_separates_directions_whatever_the_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3, 20, generator=generator), dim=1)
    truth = torch.arange(300) % 3
    lengths = torch.rand(300, 1, generator=generator) * 100 + 0.01
    rows = lengths * (directions[truth] + 0.02 * torch.randn(300, 20, generator=generator))
    labels = first_labels(Init.SPHERICAL, rows, squared_norms(rows), None, 3, 1, generator)
    for cluster in range(3):
        assert len(labels[truth == cluster].unique()) == 1
    assert len(labels.unique()) == 3


@pytest.mark.parametrize("init", list(Init))
def test_labels_are_valid_for_rows_of_zeros_and_duplicates(init: Init) -> None:
    rows = torch.zeros(50, 6)
    rows[:20] = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    labels = first_labels(init, rows, squared_norms(rows), None, 3, 2, torch.Generator().manual_seed(0))
    assert labels.shape == (50,)
    assert int(labels.min()) >= 0
    assert int(labels.max()) < 3


@pytest.mark.parametrize("init", list(Init))
def test_same_seed_same_labels(init: Init) -> None:
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    draws = [
        first_labels(init, rows, squared_norms(rows), weights, 4, 2, torch.Generator().manual_seed(5)) for _ in range(2)
    ]
    assert torch.equal(*draws)
