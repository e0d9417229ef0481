"""Encoding: the bits whose decoding comes closest to given coordinates, by Viterbi search over the 256 states.

After G. D. Forney, "The Viterbi algorithm", 1973: for each state the cheapest path that ends there is carried along;
which of its predecessors each came from is remembered, and the cheapest last state is followed back.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from projclust.coding.codebooks import FIRST_TABLE, KINDS, STATE_BITS, STATES, decode_tables

# Rows searched at once: their costs stay in a core's cache, or fill a GPU.
_CPU_ROWS, _CUDA_ROWS = 256, 8192


def search(coordinates: Tensor, kinds: Sequence[int], importance: Tensor) -> Tensor:
    """(N, steps) uint8: the states of the best path of every row, from state 0 on, as if zeros came before the row.

    The coordinates, (N, m) float32 in units of their deviations, lie in the order of the row's bits, by ascending kind;
    `importance`, (m,), is what a unit of squared error costs in each.
    """
    steps = steps_of(kinds)
    tables = decode_tables(coordinates.device)
    books, offsets = [], []
    for start, end, kind in steps:
        first = FIRST_TABLE[kind]
        book, weight = tables[first : first + end - start], importance[start:end].unsqueeze(1)
        books.append(-2 * weight * book)  # (values, 256)
        offsets.append((weight * book.square()).sum(0))  # (256,)
    block = _CUDA_ROWS if coordinates.is_cuda else _CPU_ROWS
    return torch.cat([_search_block(rows, steps, books, offsets) for rows in coordinates.split(block)])


def steps_of(kinds: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first coordinate, one past the last, kind) of every step over coordinates of ascending kinds."""
    steps, start = [], 0
    for kind, run in groupby(kinds):
        end, size = start + len(list(run)), KINDS[kind].values
        steps += [(first, min(first + size, end), kind) for first in range(start, end, size)]
        start = end
    return steps


def _search_block(
    rows: Tensor, steps: list[tuple[int, int, int]], books: list[Tensor], offsets: list[Tensor]
) -> Tensor:
    count = len(rows)
    cost = rows.new_full((count, STATES), 1e30)
    cost[:, 0] = 0
    origins = []  # (N, 256 >> bits) for each step, the high bits of the best predecessor
    for (start, end, kind), book, offset in zip(steps, books, offsets, strict=True):
        bits = KINDS[kind].bits
        # State s comes from those whose low bits are s >> bits; they differ in their high bits.
        before = cost.view(count, 1 << bits, STATES >> bits)
        if bits == 1:  # half of the time of min()
            first, second = before.unbind(1)
            best = torch.minimum(first, second)
            origins.append((second < first).to(torch.uint8))
        else:
            best, origin = before.min(1)
            origins.append(origin.to(torch.uint8))
        error = torch.addmm(offset, rows[:, start:end], book)  # (N, 256), less what no choice changes
        cost = error.view(count, STATES >> bits, 1 << bits).add_(best.unsqueeze(2)).view(count, STATES)
    state = cost.argmin(1)
    states = rows.new_empty((count, len(steps)), dtype=torch.uint8)
    for step in range(len(steps) - 1, -1, -1):
        states[:, step] = state
        bits = KINDS[steps[step][2]].bits
        low = state >> bits
        high = origins[step].gather(1, low.unsqueeze(1)).squeeze(1).long()
        state = low | (high << (STATE_BITS - bits))
    return states
