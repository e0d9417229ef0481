import itertools

import pytest
import torch
from coded_tables import row_bits
from torch import Tensor

from projclust import ProjclustError
from projclust.coding.allocation import allocate
from projclust.coding.codebooks import KINDS, NONE, NUMBER_OF, SCALAR, TRELLIS

INT4, INT8 = NUMBER_OF["int4"], NUMBER_OF["int8"]
DISTORTION = torch.tensor([kind.distortion for kind in KINDS], dtype=torch.float64)
RATE = torch.tensor([kind.rate for kind in KINDS], dtype=torch.float64)


def cost(kinds: Tensor, rows: list[int]) -> int:
    codes = sum(-(-row_bits(row) // 8) * count for row, count in zip(kinds, rows, strict=True))
    return codes + int((kinds != NONE).sum())


def error(kinds: Tensor, importance: Tensor) -> float:
    return float((importance * DISTORTION[kinds.long()]).sum())


def random_importance(classes: int, rank: int, seed: int) -> Tensor:
    return torch.randn(classes, rank, generator=torch.Generator().manual_seed(seed)).mul(2).exp().double()


def test_bits_of_rows_by_hand() -> None:
    for kinds, bits in (
        ([], 0),
        ([0, 0], 0),
        ([1], 1),
        ([1, 1, 1, 1], 1),
        ([1, 1, 1, 1, 1], 2),
        ([1, 2, 2, 2, 3], 1 + 2 + 1),
        ([8, 5, 0, 7], 8 + 3 + 4),
    ):
        assert row_bits(torch.tensor(kinds, dtype=torch.uint8)) == bits


@pytest.mark.parametrize("kinds", [TRELLIS, SCALAR])
@pytest.mark.parametrize("seed", range(4))
def test_the_budget_is_kept_and_used(seed: int, kinds: tuple[int, ...]) -> None:
    importance, rows = random_importance(3, 10, seed), [5, 20, 70]
    most = sum(rows) * 10 + 30  # eight bits for everything
    for budget in range(0, most + 40, 23):
        found = allocate(importance, rows, kinds, budget)
        spent = cost(found, rows)
        assert spent <= budget
        if bool((found[0] != INT8).any()):
            # A byte more for the rows of the smallest class, and a deviation for each coordinate it brings.
            assert budget - spent < rows[0] + 10
        else:
            assert budget >= 5 * 10
    assert cost(allocate(importance, rows, kinds, most), rows) == most
    assert allocate(importance, rows, kinds, most).unique().tolist() == [INT8]
    assert not allocate(importance, rows, kinds, 0).any()


@pytest.mark.parametrize("seed", range(4))
def test_more_budget_is_never_more_error(seed: int) -> None:
    importance, rows = random_importance(3, 10, seed), [5, 20, 70]
    errors = [error(allocate(importance, rows, TRELLIS, budget), importance) for budget in range(0, 1000, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("seed", range(4))
def test_more_important_coordinates_never_have_fewer_bits(seed: int) -> None:
    importance, rows = random_importance(3, 10, seed), [5, 20, 70]
    for budget in (30, 150, 400, 700):
        for own, found in zip(importance, allocate(importance, rows, TRELLIS, budget), strict=True):
            rates = RATE[found[own.argsort()].long()].tolist()
            assert rates == sorted(rates)
    # Of two classes of equal size, coordinate by coordinate, the important one.
    both = torch.stack([importance[0], importance[0] * 3])
    poor, rich = allocate(both, [40, 40], TRELLIS, 230)
    assert bool((RATE[rich.long()] >= RATE[poor.long()]).all())
    assert row_bits(rich) > row_bits(poor)


@pytest.mark.parametrize("budget", range(0, 72, 3))
def test_where_every_step_costs_the_same_it_is_the_best_there_is(budget: int) -> None:
    importance, rows = random_importance(2, 3, 1), [10, 10]
    every = [torch.tensor(kinds, dtype=torch.uint8).view(2, 3) for kinds in itertools.product((NONE, INT8), repeat=6)]
    best = min(error(kinds, importance) for kinds in every if cost(kinds, rows) <= budget)
    assert error(allocate(importance, rows, (INT8,), budget), importance) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_no_worse_than_the_best_with_a_byte_less_a_row(seed: int) -> None:
    importance, rows, kinds = random_importance(2, 4, seed), [8, 24], (3, 4, 6)
    classes = [torch.tensor(row, dtype=torch.uint8) for row in itertools.product((NONE, *kinds), repeat=4)]
    # Of each class alone, for all pairs: errors add up, and so do costs.
    errors = [torch.tensor([error(row, own) for row in classes], dtype=torch.float64) for own in importance]
    costs = [torch.tensor([cost(row.unsqueeze(0), [count]) for row in classes]) for count in rows]
    total_error, total_cost = errors[0].unsqueeze(1) + errors[1], costs[0].unsqueeze(1) + costs[1]
    for budget in range(0, 100, 4):
        found = error(allocate(importance, rows, kinds, budget), importance)
        assert found >= float(total_error[total_cost <= budget].min()) - 1e-9
        if budget >= sum(rows):
            assert found <= float(total_error[total_cost <= budget - sum(rows)].min()) + 1e-9


def test_kinds_that_two_others_beat_are_never_chosen() -> None:
    importance = random_importance(3, 10, 0)
    for kinds, beaten in ((range(1, len(KINDS)), {INT4, *SCALAR} - {INT8}), ((4, 10, 6), {10}), ((INT4, 4, 6), {INT4})):
        for budget in range(0, 1000, 50):
            found = set(allocate(importance, [5, 20, 70], list(kinds), budget).unique().tolist())
            assert not found & beaten
            assert found <= {NONE, *kinds}


def test_classes_without_rows_and_coordinates_without_energy_are_no_trouble() -> None:
    importance = torch.zeros(2, 3, dtype=torch.float64)
    found = allocate(importance, [4, 0], TRELLIS, 50)
    assert cost(found, [4, 0]) <= 50
    importance[0, 1] = 1
    assert int(RATE[allocate(importance, [4, 4], TRELLIS, 5)[0].long()].argmax()) == 1


def test_no_room_is_an_error() -> None:
    with pytest.raises(ProjclustError, match="no room for codes"):
        allocate(torch.ones(1, 2), [3], TRELLIS, -1)
