"""Viterbi search against every string of bits there is."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from coded_tables import bits_of, decode_bits, gaussian
from torch import Tensor

from projclust.coding import trellis
from projclust.coding.codebooks import FIRST_TABLE, KINDS, SCALAR, TRELLIS, decode_tables, is_integer
from projclust.coding.packing import pack_steps
from projclust.coding.trellis import search, steps_of


def row_cost(values: Tensor, rows: Tensor, importance: Tensor) -> Tensor:
    return ((rows - values).square() * importance).sum(-1)


def found_values(rows: Tensor, kinds: list[int], importance: Tensor) -> Tensor:
    packed = pack_steps(search(rows, kinds, importance), [KINDS[kind].bits for *_, kind in steps_of(kinds)])
    return torch.tensor([decode_bits(bits_of(row), kinds) for row in packed], device=rows.device)


@pytest.mark.parametrize(
    "kinds",
    [
        [1] * 9,  # two whole steps of four and a short one
        [1, 2, 2, 2, 3, 4],
        [2, 3, 3, 4, 5],
        [3] * 12,
        [5, 6, 6],
        [1, 1, 3, 7, 7],
        [3, 3, 8],
        [2, 2, 9, 10, 11],  # scalar codes behind a trellis
    ],
)
def test_the_path_found_is_the_best_of_all_strings(kinds: list[int], device: torch.device) -> None:
    count = sum(KINDS[kind].bits for *_, kind in steps_of(kinds))
    every = torch.tensor([decode_bits(f"{number:0{count}b}", kinds) for number in range(1 << count)])
    rows = gaussian(20, len(kinds)) * torch.tensor([40.0 if is_integer(kind) else 1.0 for kind in kinds])
    for importance in (torch.ones(len(kinds)), gaussian(len(kinds), seed=1).exp()):
        best = torch.stack([row_cost(every, row, importance).min() for row in rows])
        found = found_values(rows.to(device), kinds, importance.to(device))
        own = row_cost(found.cpu(), rows, importance)
        assert torch.allclose(own, best, rtol=1e-4, atol=1e-4)


def test_importance_decides_which_coordinate_is_met() -> None:
    kinds, rows = [1, 1], gaussian(200, 2)  # one bit for both
    errors = []
    for importance in (torch.tensor([1.0, 0.01]), torch.tensor([0.01, 1.0])):
        errors.append((found_values(rows, kinds, importance) - rows).square().mean(0))
    assert errors[0][0] < errors[1][0]
    assert errors[1][1] < errors[0][1]


@pytest.mark.parametrize("kind", sorted({*TRELLIS, *SCALAR} - {8}))
def test_distortion_on_gaussian_samples_is_the_documented_one(kind: int) -> None:
    values, skip = KINDS[kind].values, 8 * KINDS[kind].values
    rows = gaussian(400, skip + 88 * values, seed=kind)
    states = search(rows, [kind] * rows.shape[1], torch.ones(rows.shape[1])).long()
    book = decode_tables()[FIRST_TABLE[kind] : FIRST_TABLE[kind] + values]
    decoded = book[:, states].permute(1, 2, 0).reshape(rows.shape)
    # The first states of a row are not all there are yet; the last ones are freer than others.
    error = float((rows - decoded)[:, skip:].square().mean())
    assert error == pytest.approx(KINDS[kind].distortion, rel=0.1)


def test_rows_do_not_depend_on_those_beside_them(device: torch.device) -> None:
    rows, kinds, ones = (
        gaussian(600, 6).to(device),
        [1, 1, 2, 3, 4, 5],
        torch.ones(6, device=device),
    )  # more than are searched at once
    together = search(rows, kinds, ones)
    assert together.dtype == torch.uint8
    for row in (0, 255, 256, 599):
        assert torch.equal(search(rows[row : row + 1], kinds, ones)[0], together[row])


def test_steps_by_hand() -> None:
    assert steps_of([1, 1, 1, 1, 1, 2, 3, 3]) == [(0, 4, 1), (4, 5, 1), (5, 6, 2), (6, 7, 3), (7, 8, 3)]
    assert steps_of([]) == []


def test_every_path_starts_in_state_zero() -> None:
    states = search(gaussian(50, 5), [5] * 5, torch.ones(5)).long()
    assert int(states[:, 0].max()) < 8
    for before, after in itertools.pairwise(states.unbind(1)):
        assert torch.equal(after >> 3, before & 31)


@pytest.mark.parametrize("kinds", [[1] * 9 + [2] * 5 + [3] * 20 + [4, 4, 5, 6, 8], [2] * 3, [6] * 20, [9, 10, 11, 12]])
def test_compiled_loops_and_torch_find_the_same_paths(kinds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, importance = gaussian(150, len(kinds)), gaussian(len(kinds), seed=1).exp()
    assert trellis.has_kernels()
    compiled = search(rows, kinds, importance)
    monkeypatch.setattr(trellis, "has_kernels", lambda: False)
    assert torch.equal(search(rows, kinds, importance), compiled)


@pytest.mark.parametrize("kinds", [[1] * 5 + [2] * 3 + [3] * 4 + [4, 5, 6, 8], [2] * 3, [9, 10, 11, 12]])
def test_kernels_on_a_gpu_find_the_same_paths(
    kinds: list[int], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    rows, importance = gaussian(9, len(kinds)), gaussian(len(kinds), seed=1).exp()
    compiled = search(rows, kinds, importance)
    monkeypatch.setattr(trellis, "has_gpu_kernels", lambda device: True)
    assert torch.equal(search(rows.to(device), kinds, importance.to(device)).cpu(), compiled)


@pytest.mark.parametrize(
    "without", ["import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "import sys; sys.modules['numba'] = None"]
)
def test_without_compiled_loops_torch_does_it(without: str) -> None:
    code = f"{without}\nimport torch\nfrom projclust.coding import trellis\nassert not trellis.has_kernels()\n"
    code += "print(trellis.search(torch.ones(1, 4), [3] * 4, torch.ones(4)).tolist())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(search(torch.ones(1, 4), [3] * 4, torch.ones(4)).tolist())


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that torch uses; afterwards it is as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_paths_do_not_depend_on_the_number_of_threads(threads: Callable[[int], None]) -> None:
    rows, kinds, importance = gaussian(300, 40), [1] * 8 + [3] * 30 + [4] * 2, torch.ones(40)
    threads(1)
    alone = search(rows, kinds, importance)
    for number in (2, 4):
        threads(number)
        assert torch.equal(search(rows, kinds, importance), alone)
