"""Encoding: the bits whose decoding comes closest to given coordinates, by Viterbi search over the 256 states.

After G. D. Forney, "The Viterbi algorithm", 1973: for each state the cheapest path that ends there is carried along;
which of its predecessors each came from is remembered, and the cheapest last state is followed back.

On a CPU threads share the rows in loops that numba compiled. Six small operations of torch for each step, between which
its threads wait for each other, take ten times as long, and forty times beside busy processes
(benchmarks/bench_trellis.py).
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from projclust.coding.codebooks import FIRST_TABLE, KINDS, STATE_BITS, STATES, decode_tables
from projclust.coding.gpu import device_of, gpu_kernels, has_gpu_kernels

# Rows searched at once: by a thread; by torch, whose costs stay in a core's cache, or fill a GPU.
_THREAD_ROWS, _CPU_ROWS, _CUDA_ROWS = 64, 256, 8192
# Of a kernel on a GPU: the rows of a program, and what all rows at once may take to work with.
_GPU_ROWS, _GPU_BYTES = 4, 2**26


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
    steps = _steps(kinds, importance)
    if coordinates.is_cpu and len(steps) > 0 and has_kernels():
        return _search_in_threads(coordinates, steps)
    if len(steps) > 0 and has_gpu_kernels(coordinates.device):
        return _search_on_gpu(coordinates, steps)
    block = _CUDA_ROWS if coordinates.is_cuda else _CPU_ROWS
    return torch.cat([_search_block(rows, steps) for rows in coordinates.split(block)])


def _steps(kinds: Sequence[int], importance: Tensor) -> list[_Step]:
    """What every step costs; the steps of one kind are made together, for a GPU takes as long for one."""
    tables, all_steps, steps = decode_tables(importance.device), steps_of(kinds), []
    for kind, run in groupby(all_steps, key=lambda step: step[2]):
        own, size = list(run), KINDS[kind].values
        weight = importance[own[0][0] : own[-1][1]]
        weight = F.pad(weight, (0, len(own) * size - len(weight))).view(len(own), size, 1)
        book = tables[FIRST_TABLE[kind] : FIRST_TABLE[kind] + size]
        books, offsets = -2 * weight * book, (weight * book.square()).sum(1)
        bits = KINDS[kind].bits
        steps += [_Step(*ends[:2], bits, *parts) for ends, *parts in zip(own, books, offsets, strict=True)]
    return steps


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


class _Trellis(NamedTuple):
    """The same steps in one piece, as loops take them: step t has the columns from ``first[t]`` to ``first[t + 1]``."""

    rows: Tensor  # (N, columns) float32; the last step of a kind may be short of coordinates: it gets zeros
    bits: Tensor  # (steps,) int32, as the next
    first: Tensor  # (steps + 1,)
    books: Tensor  # (columns, 256)
    offsets: Tensor  # (steps, 256)


def _trellis(coordinates: Tensor, steps: list[_Step]) -> _Trellis:
    device = coordinates.device
    first = [0, *accumulate(len(step.book) for step in steps)]
    places = [at + number for at, step in zip(first, steps, strict=False) for number in range(step.end - step.start)]
    rows = coordinates.new_zeros(len(coordinates), first[-1])
    rows[:, torch.tensor(places, device=device)] = coordinates
    return _Trellis(
        rows=rows,
        bits=torch.tensor([step.bits for step in steps], dtype=torch.int32, device=device),
        first=torch.tensor(first, dtype=torch.int32, device=device),
        books=torch.cat([step.book for step in steps]),
        offsets=torch.stack([step.offset for step in steps]),
    )


def _search_on_gpu(coordinates: Tensor, steps: list[_Step]) -> Tensor:
    trellis = _trellis(coordinates, steps)
    states = torch.empty(len(coordinates), len(steps), dtype=torch.uint8, device=coordinates.device)
    size = max(_GPU_ROWS, _GPU_BYTES // (len(steps) * STATES))
    origins = states.new_empty(min(size, len(states)), len(steps), STATES)
    with device_of(states):
        for rows, into in zip(trellis.rows.split(size), states.split(size), strict=True):
            gpu_kernels().viterbi[-(-len(rows) // _GPU_ROWS),](
                *(rows, into, origins, *trellis[1:], len(rows), rows.shape[1], len(steps)),
                ROWS=_GPU_ROWS,
                enable_fp_fusion=False,  # or the last bit would be another
            )
    return states


def _search_in_threads(coordinates: Tensor, steps: list[_Step]) -> Tensor:
    from projclust.coding.kernels import in_threads, viterbi

    rows, *parts = (part.numpy() for part in _trellis(coordinates, steps))
    loop = dict(zip(_Trellis._fields[1:], parts, strict=True))
    states = np.empty((len(rows), len(steps)), np.uint8)

    def work(start: int, end: int) -> None:
        viterbi(rows[start:end], states[start:end], **loop)

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
