"""Bits where they save most: reverse water-filling over classes of rows and coordinates, to a budget of bytes.

Source: T. Cover and J. Thomas, "Elements of Information Theory", section 10.3.3, for real codes: each coordinate takes
the code that minimises importance * distortion + slope * bits, and the slope is the one that meets the budget.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from projclust.coding.codebooks import KINDS, NONE
from projclust.errors import ProjclustError


class _Curve(NamedTuple):
    """What one class can have, by the bytes of each of its rows, from 0 on."""

    saved: Tensor  # (B,) the error saved, rising
    cost: Tensor  # (B,) the bytes of all its rows and of its deviations
    taken: Tensor  # (B,) how many of the steps are taken
    steps: Tensor  # (S,) what to take in this order: coordinate * steps of the hull + step of the hull


def allocate(importance: Tensor, rows: Sequence[int], kinds: Sequence[int], budget: int) -> Tensor:
    """(C, r) uint8, the one of these kinds of codes, or none, that every coordinate has in every class.

    `importance`, (C, r), is the error that a coordinate leaves in all rows of a class if it is not coded; `rows` counts
    those of each class. The bytes of `budget` are for the codes of all rows, and one for the deviation of each
    coordinate that has any.
    """
    if budget < 0:
        raise ProjclustError("the budget leaves no room for codes")
    hull = _convex_hull(kinds)
    curves = [_curve(row, count, hull) for row, count in zip(importance.double().cpu(), rows, strict=True)]
    chosen = _by_slope(curves, budget)
    _spend_the_rest(curves, chosen, budget)
    steps = [curve.steps[: int(curve.taken[place])] for curve, place in zip(curves, chosen, strict=True)]
    taken = torch.stack([torch.bincount(own // (len(hull) - 1), minlength=importance.shape[1]) for own in steps])
    return torch.tensor(hull, dtype=torch.uint8)[taken]


def _convex_hull(kinds: Sequence[int]) -> list[int]:
    """No code, and of `kinds` those that a better and a worse one together do not beat, by rising rate."""
    hull = [NONE]
    for kind in sorted(kinds, key=lambda kind: KINDS[kind].rate):
        while len(hull) > 1 and _slope(hull[-1], kind) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        if KINDS[kind].rate > KINDS[hull[-1]].rate and KINDS[kind].distortion < KINDS[hull[-1]].distortion:
            hull.append(kind)
    return hull


def _slope(lower: int, upper: int) -> float:
    """The distortion that a bit more saves."""
    saved = KINDS[lower].distortion - KINDS[upper].distortion
    return saved / max(KINDS[upper].rate - KINDS[lower].rate, 1e-12)


def _curve(importance: Tensor, rows: int, hull: list[int]) -> _Curve:
    """What a class can have when steps along the hull are taken by the error they save for a bit."""
    saved = torch.tensor([KINDS[a].distortion - KINDS[b].distortion for a, b in pairwise(hull)])
    slopes = torch.tensor([_slope(a, b) for a, b in pairwise(hull)], dtype=torch.float64)
    efficiency = (importance.unsqueeze(1) * slopes).flatten()  # (r * steps,), falling along each coordinate
    order = efficiency.argsort(descending=True, stable=True)
    place = order % len(slopes)
    total_saved = (importance.unsqueeze(1) * saved.double()).flatten()[order].cumsum(0)
    # How many coordinates have each kind after so many steps, and so the bits of a row.
    bits = torch.zeros(len(order), dtype=torch.int64)
    for number in range(1, len(hull)):
        joined = (place == number - 1).long().cumsum(0)
        left = (place == number).long().cumsum(0)
        kind = KINDS[hull[number]]
        bits += (joined - left + kind.values - 1) // kind.values * kind.bits
    coded = (place == 0).long().cumsum(0)
    bits, coded, total_saved = (torch.cat([values.new_zeros(1), values]) for values in (bits, coded, total_saved))
    largest = int(bits.max() + 7) // 8
    # A step may free bits (a pair that fills a step of four): of all that fit, the last.
    fits_from = (bits + 7) // 8
    taken = torch.zeros(largest + 1, dtype=torch.int64)
    taken = taken.scatter_reduce(0, fits_from, torch.arange(len(bits)), "amax").cummax(0).values
    lengths = torch.arange(largest + 1)
    return _Curve(saved=total_saved[taken], cost=lengths * rows + coded[taken], taken=taken, steps=order)


def _by_slope(curves: list[_Curve], budget: int) -> list[int]:
    """The bytes of each class's rows at the smallest slope that keeps to the budget."""

    # One matrix, for there are many slopes to try; what a class cannot have saves nothing at any price.
    saved = pad_sequence([curve.saved for curve in curves], batch_first=True, padding_value=-inf)
    cost = pad_sequence([curve.cost for curve in curves], batch_first=True)

    def at(slope: float) -> list[int]:
        return (saved - slope * cost).argmax(1).tolist()

    low, high = 0.0, 1.0 + max(float((curve.saved[1:] / curve.cost[1:]).max()) for curve in curves)
    if _cost(curves, at(low)) <= budget:
        return at(low)
    for _ in range(200):
        middle = (low * high) ** 0.5 if low > 0 else high / 16
        if _cost(curves, at(middle)) <= budget:
            high = middle
        else:
            low = middle
        if low > 0 and high / low < 1 + 1e-9:
            break
    return at(high)


def _cost(curves: list[_Curve], chosen: list[int]) -> int:
    return sum(int(curve.cost[place]) for curve, place in zip(curves, chosen, strict=True))


def _spend_the_rest(curves: list[_Curve], chosen: list[int], budget: int) -> None:
    """Lengthen rows while anything fits, each time those where a byte saves most."""
    left = budget - _cost(curves, chosen)
    while True:
        best: tuple[float, int, int] | None = None  # error saved by a byte, class, bytes
        for number, (curve, place) in enumerate(zip(curves, chosen, strict=True)):
            if place + 1 < len(curve.cost):
                price = int(curve.cost[place + 1] - curve.cost[place])
                value = float(curve.saved[place + 1] - curve.saved[place]) / max(price, 1)
                if price <= left and (best is None or value > best[0]):
                    best = value, number, price
        if best is None:
            return
        chosen[best[1]] += 1
        left -= best[2]
