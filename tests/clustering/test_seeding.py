import pytest
import torch

from projclust.clustering.rows import Rows
from projclust.clustering.seeding import initial_labels, random_partition, successive_halving
from projclust.options import Init


def test_random_partition_is_equal_and_complete() -> None:
    labels = random_partition(Rows.of(torch.zeros(103, 2)), 4, torch.Generator().manual_seed(0))
    assert sorted(torch.bincount(labels).tolist()) == [25, 26, 26, 26]


def test_spherical_kmeans_separates_directions_whatever_the_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3, 20, generator=generator), dim=1)
    truth = torch.arange(300) % 3
    lengths = torch.rand(300, 1, generator=generator) * 100 + 0.01
    rows = lengths * (directions[truth] + 0.02 * torch.randn(300, 20, generator=generator))
    for labels in initial_labels(Init.SPHERICAL, Rows.of(rows), 3, 1, [generator] * 4):
        for cluster in range(3):
            assert len(labels[truth == cluster].unique()) == 1
        assert len(labels.unique()) == 3


@pytest.mark.parametrize("init", list(Init))
def test_labels_are_valid_for_rows_of_zeros_and_duplicates(init: Init) -> None:
    rows = torch.zeros(50, 6)
    rows[:20] = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    labels = initial_labels(init, Rows.of(rows), 3, 2, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    assert labels.shape == (2, 50)
    assert int(labels.min()) >= 0
    assert int(labels.max()) < 3


@pytest.mark.parametrize("init", list(Init))
def test_same_seed_same_labels(init: Init) -> None:
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    draws = [
        initial_labels(init, Rows.of(rows, weights), 4, 2, [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0][0], draws[0][1])  # every start is another one


@pytest.mark.parametrize("weighted", [False, True])
def test_successive_halving_finds_the_lines_that_are_there_and_says_what_they_cost(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lines = torch.nn.functional.normalize(torch.randn(3, 12, generator=generator, dtype=torch.float64), dim=1)
    truth = torch.arange(600) % 3
    table = torch.randn(600, 1, generator=generator, dtype=torch.float64) * lines[truth]
    weights = torch.rand(600, generator=generator, dtype=torch.float64) if weighted else None
    rows = Rows.of(table, weights)
    starts = torch.stack([torch.randint(0, 3, (600,), generator=generator), truth])
    bases, costs = successive_halving(rows, starts, 3, [1], [generator] * len(starts))
    assert costs[1] < 1e-9 * rows.weighted_sum(rows.norms)
    assert costs.min() < 1e-9 * rows.weighted_sum(rows.norms)
    assert torch.allclose((bases[:, 0] @ lines.T).abs().max(1).values, torch.ones(3, dtype=torch.float64))


def test_the_best_quarter_of_the_starts_goes_on() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Rows.of(torch.randn(500, 20, generator=generator) @ torch.diag(0.8 ** torch.arange(20.0)))
    labels = initial_labels(Init.RANDOM, rows, 3, 1, [generator] * 5)
    bases, costs = successive_halving(rows, labels, 3, [1, 4], [generator] * 5)
    assert bases.shape == (3, 4, 20)
    cheap = costs < 0.8 * costs.max()  # at rank 4 instead of 1
    assert int(cheap.sum()) == 2
