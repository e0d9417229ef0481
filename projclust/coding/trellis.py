"""Encoding: the bits whose decoding comes closest to given coordinates, by Viterbi search over the 256 states.

After G. D. Forney, "The Viterbi algorithm", 1973: for each state the cheapest path that ends there is carried along;
which of its predecessors each came from is remembered, and the cheapest last state is followed back.

On a CPU threads share the rows in loops that numba compiled. Six small operations of torch for each step, between which
its threads wait for each other, take ten times as long, and forty times beside busy processes
(benchmarks/bench_trellis.py).
"""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from projclust.coding.codebooks import FIRST_TABLE, KINDS, STATE_BITS, STATES, decode_tables

# Rows searched at once: by a thread; by torch, whose costs stay in a core's cache, or fill a GPU.
_THREAD_ROWS, _CPU_ROWS, _CUDA_ROWS = 64, 256, 8192


class _Step(NamedTuple):
    """The coordinates that new bits decode, from `start` up to `end`, and what they cost in each state."""

    start: int
    end: int
    bits: int
    book: Tensor  # (values, 256) by what a coordinate's cost grows with it; zeros for those that a short step lacks
    offset: Tensor  # (256,)


def search(coordinates: Tensor, kinds: Sequence[int], importance: Tensor) -> Tensor:
    """(N, steps) uint8: the states of the best path of every row, from state 0 on, as if zeros came before the row.

    The coordinates, (N, m) float32 in units of their deviations, lie in the order of the row's bits, by ascending kind;
    `importance`, (m,), is what a unit of squared error costs in each.
    """
    tables = decode_tables(coordinates.device)
    steps = []
    for start, end, kind in steps_of(kinds):
        first, values = FIRST_TABLE[kind], KINDS[kind].values
        book, weight = tables[first : first + end - start], importance[start:end].unsqueeze(1)
        short = (0, 0, 0, values - (end - start))
        offset = (weight * book.square()).sum(0)
        steps.append(_Step(start, end, KINDS[kind].bits, F.pad(-2 * weight * book, short), offset))
    if coordinates.is_cpu and len(steps) > 0 and has_kernels():
        return _search_in_threads(coordinates, steps)
    block = _CUDA_ROWS if coordinates.is_cuda else _CPU_ROWS
    return torch.cat([_search_block(rows, steps) for rows in coordinates.split(block)])


def steps_of(kinds: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first coordinate, one past the last, kind) of every step over coordinates of ascending kinds."""
    steps, start = [], 0
    for kind, run in groupby(kinds):
        end, size = start + len(list(run)), KINDS[kind].values
        steps += [(first, min(first + size, end), kind) for first in range(start, end, size)]
        start = end
    return steps


@cache
def has_kernels() -> bool:
    """Whether compiled loops are at hand; what they do is done by torch where they are not.

    NUMBA_DISABLE_JIT=1 does without, as where a program starts once in a fresh place and will not wait for a compiler.
    """
    try:
        import numba

        import projclust.coding.kernels  # noqa: F401
    except ImportError:
        return False
    return not numba.config.DISABLE_JIT


def _search_in_threads(coordinates: Tensor, steps: list[_Step]) -> Tensor:
    from projclust.coding.kernels import in_threads, viterbi

    first = np.cumsum([0, *(len(step.book) for step in steps)])
    # The last step of a kind may be short of coordinates: it gets zeros.
    rows = np.zeros((len(coordinates), int(first[-1])), np.float32)
    places = np.concatenate([np.arange(step.end - step.start) + at for step, at in zip(steps, first, strict=False)])
    rows[:, places] = coordinates.numpy()
    bits = np.array([step.bits for step in steps])
    books = torch.cat([step.book for step in steps]).numpy()
    offsets = torch.stack([step.offset for step in steps]).numpy()
    states = np.empty((len(rows), len(steps)), np.uint8)

    def work(start: int, end: int) -> None:
        viterbi(rows[start:end], states[start:end], bits=bits, first=first, books=books, offsets=offsets)

    in_threads(work, len(rows), _THREAD_ROWS)
    return torch.from_numpy(states)


def _search_block(rows: Tensor, steps: list[_Step]) -> Tensor:
    count = len(rows)
    cost = rows.new_full((count, STATES), 1e30)
    cost[:, 0] = 0
    origins = []  # (N, 256 >> bits) for each step, the high bits of the best predecessor
    for start, end, bits, book, offset in steps:
        # State s comes from those whose low bits are s >> bits; they differ in their high bits.
        before = cost.view(count, 1 << bits, STATES >> bits)
        if bits == 1:  # half of the time of min()
            first, second = before.unbind(1)
            best = torch.minimum(first, second)
            origins.append((second < first).to(torch.uint8))
        else:
            best, origin = before.min(1)
            origins.append(origin.to(torch.uint8))
        # (N, 256), less what no choice changes; added in the order of the compiled loop, to the same bit.
        error = offset + rows[:, start : start + 1] * book[0]
        for column in range(start + 1, end):
            error += rows[:, column : column + 1] * book[column - start]
        cost = error.view(count, STATES >> bits, 1 << bits).add_(best.unsqueeze(2)).view(count, STATES)
    state = cost.argmin(1)
    states = rows.new_empty((count, len(steps)), dtype=torch.uint8)
    for step in range(len(steps) - 1, -1, -1):
        states[:, step] = state
        low = state >> steps[step].bits
        high = origins[step].gather(1, low.unsqueeze(1)).squeeze(1).long()
        state = low | (high << (STATE_BITS - steps[step].bits))
    return states
