"""The loops that plain torch does slowly on a CPU, compiled by numba.

Each works on rows that do not depend on each other and holds no lock of Python, so that threads share the rows and
never wait for each other: `in_threads` does that. Where numba cannot be imported, the same is computed in torch, to the
same bit; see `projclust.coding.trellis`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
import torch

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """The loop, compiled at its first call; to the last bit what torch computes in the same order."""
    return _compile(loop, fastmath=False)


def compiled_sums(loop: Loop) -> Loop:
    """A loop of sums, compiled so that they may be taken in another order and products be fused with them."""
    return _compile(loop, fastmath={"contract", "reassoc"})


def _compile(loop: Loop, fastmath: Any) -> Loop:
    try:
        return numba.njit(nogil=True, cache=True, fastmath=fastmath)(loop)
    except RuntimeError:  # nowhere to keep what is compiled: each process compiles it again
        return numba.njit(nogil=True, fastmath=fastmath)(loop)


def in_threads(work: Callable[[int, int], None], count: int, block: int) -> None:
    """Call ``work(start, end)`` for blocks of `count` rows, in as many threads as torch uses."""
    starts = iter(range(0, count, block))

    def share() -> None:
        for start in starts:
            work(start, min(start + block, count))

    others = min(torch.get_num_threads(), -(-count // block)) - 1
    if others < 1:
        share()
        return
    with ThreadPoolExecutor(others) as threads:
        shares = [threads.submit(share) for _ in range(others)]
        share()
    for other in shares:
        other.result()


@compiled
def viterbi(rows: Any, states: Any, bits: Any, first: Any, books: Any, offsets: Any) -> None:
    """Fill `states`, (N, steps) uint8, with the cheapest path of each row; see `projclust.coding.trellis`.

    Step t has the coordinates from ``first[t]`` up to ``first[t + 1]`` of `rows`, (N, m) float32, of which it takes 1,
    2 or 4; their books are those of the same numbers in `books`, (m, 256) float32; `offsets` are (steps, 256) float32.
    """
    steps = len(bits)
    cost, spread = np.empty(256, np.float32), np.empty(256, np.float32)
    best = np.empty(256, np.float32)
    origins = np.empty((steps, 256), np.uint8)
    for row in range(len(rows)):
        cost[:] = np.float32(1e30)
        cost[0] = np.float32(0)
        for t in range(steps):
            # State s comes from those whose low bits are s >> bits; they differ in their high bits.
            origin = origins[t]
            if bits[t] == 1:
                for low in range(128):
                    one, other = cost[low], cost[128 + low]
                    origin[low] = other < one
                    best[low] = other if other < one else one
                for low in range(128):
                    spread[2 * low] = best[low]
                    spread[2 * low + 1] = best[low]
            else:
                lows = 256 >> bits[t]
                for low in range(lows):
                    best[low] = cost[low]
                    origin[low] = 0
                for high in range(1, 1 << bits[t]):
                    mark, rest = np.uint8(high), cost[high * lows : (high + 1) * lows]
                    for low in range(lows):
                        origin[low] = mark if rest[low] < best[low] else origin[low]
                        best[low] = min(rest[low], best[low])
                if bits[t] == 2:
                    for low in range(64):
                        spread[4 * low] = best[low]
                        spread[4 * low + 1] = best[low]
                        spread[4 * low + 2] = best[low]
                        spread[4 * low + 3] = best[low]
                else:
                    for low in range(lows):
                        spread[low << bits[t] : (low + 1) << bits[t]] = best[low]
            offset, a = offsets[t], first[t]
            if first[t + 1] - a == 1:
                for s in range(256):
                    cost[s] = spread[s] + (offset[s] + rows[row, a] * books[a, s])
            elif first[t + 1] - a == 2:
                for s in range(256):
                    error = offset[s] + rows[row, a] * books[a, s]
                    cost[s] = spread[s] + (error + rows[row, a + 1] * books[a + 1, s])
            else:
                for s in range(256):
                    error = offset[s] + rows[row, a] * books[a, s] + rows[row, a + 1] * books[a + 1, s]
                    error = error + rows[row, a + 2] * books[a + 2, s] + rows[row, a + 3] * books[a + 3, s]
                    cost[s] = spread[s] + error
        state = 0
        for s in range(1, 256):
            if cost[s] < cost[state]:
                state = s
        for t in range(steps - 1, -1, -1):
            states[row, t] = state
            low = state >> bits[t]
            state = low | (np.int64(origins[t, low]) << (8 - bits[t]))
