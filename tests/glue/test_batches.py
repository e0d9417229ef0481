from collections import Counter
from itertools import chain

import pytest
import torch

from projclust.glue.batches import ShuffledBatches, SortedBatches

LENGTHS = torch.randint(3, 60, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


def padding(batches: list[list[int]]) -> float:
    """Padded over real tokens."""
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return padded / sum(LENGTHS) - 1


@pytest.mark.parametrize("size", [1, 8, 32, 1003, 5000])
def test_every_row_comes_once_each_epoch_and_only_the_last_batch_is_not_full(size: int) -> None:
    for sampler in (ShuffledBatches(LENGTHS, size, seed=0), SortedBatches(LENGTHS, size)):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert Counter(row for batch in batches for row in batch) == Counter(range(1003))
        assert all(len(batch) == size for batch in batches[:-1])


def test_rows_of_similar_length_share_a_batch_and_epochs_differ() -> None:
    sampler = ShuffledBatches(LENGTHS, 16, seed=3)
    first, again = list(sampler), list(sampler)
    assert first == again
    sampler.epoch = 1
    second = list(sampler)
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert list(ShuffledBatches(LENGTHS, 16, seed=4)) != first
    shuffled = torch.randperm(1003, generator=torch.Generator().manual_seed(0)).tolist()
    unsorted = [shuffled[start : start + 16] for start in range(0, 1003, 16)]
    assert padding(unsorted) > 0.6
    assert padding(first) < 0.1
    assert padding(list(SortedBatches(LENGTHS, 16))) < 0.03


def test_parts_of_a_batch_come_one_after_the_other() -> None:
    whole, parts = list(ShuffledBatches(LENGTHS, 32, seed=1)), list(ShuffledBatches(LENGTHS, 32, seed=1, parts=4))
    assert all(len(part) == 8 for part in parts[:-1])
    steps = [list(chain.from_iterable(parts[start : start + 4])) for start in range(0, len(parts), 4)]
    assert steps == whole


def test_the_order_of_lengths_is_not_the_order_of_training() -> None:
    longest = [max(LENGTHS[row] for row in batch) for batch in ShuffledBatches(LENGTHS, 16, seed=0)]
    assert longest != sorted(longest)
