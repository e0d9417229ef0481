"""Codes of rows from their coordinates."""

from collections.abc import Callable

import torch
from torch import Tensor

from projclust.coding.codebooks import FIRST_TABLE, KINDS, STATES, decode_tables, is_integer, needs_search
from projclust.coding.layout import ClassLayout
from projclust.coding.packing import pack_steps
from projclust.coding.trellis import search, steps_of


def encode_rows(coordinates: Tensor, deviations: Tensor, layout: ClassLayout, advance: Callable[[int], None]) -> Tensor:
    """uint8 (N, row bytes): the codes of rows of one class, from coordinates (N, r) and the deviations (r,) as stored.

    `advance` is called with the number of rows that were just encoded.
    """
    spread = deviations[layout.coded.to(deviations.device)]
    # Over a power of two, which changes nothing but keeps their squares in range.
    exponent = torch.frexp(spread).exponent.amax().clamp(min=-126) if len(spread) else 0
    relative = spread * 2.0 ** -int(exponent)
    bits = [KINDS[kind].bits for _, _, kind in steps_of(layout.kinds)]
    parts = []
    for rows in coordinates.split(16384 if coordinates.is_cuda else 1024):
        unit = rows[:, layout.coded.to(rows.device)].float() / spread.clamp(min=1e-38)
        if any(map(needs_search, layout.kinds)):
            states = search(unit, layout.kinds, relative.square() / relative.square().amax().clamp(min=1e-38))
        else:
            states = _nearest(unit, layout.kinds)
        parts.append(pack_steps(states, bits))
        advance(len(rows))
    return torch.cat(parts)


def widening(energy: Tensor, coded: Tensor) -> Tensor:
    """(C,) what widens each class's deviations by half of what its codes shrink the energy of its coordinates, (C,)."""
    shrunk = (energy / coded.clamp(min=1e-300)).clamp(1, 4)
    return (0.5 + 0.5 * shrunk).sqrt().where(coded > 0, torch.ones_like(shrunk))


def _nearest(unit: Tensor, kinds: list[int]) -> Tensor:
    """(N, m) uint8 states of codes that depend on no bits but their own."""
    states = torch.empty(unit.shape, dtype=torch.uint8, device=unit.device)
    tables = decode_tables(unit.device)
    for kind in dict.fromkeys(kinds):
        columns = torch.tensor([number for number, other in enumerate(kinds) if other == kind], device=unit.device)
        levels = tables[FIRST_TABLE[kind], : min(STATES, 1 << KINDS[kind].bits)]
        if is_integer(kind):
            nearest = unit[:, columns].round().clamp(float(levels.min()), float(levels.max())) - levels[0]
        else:
            sorted_levels, order = levels.sort()
            edges = (sorted_levels[1:] + sorted_levels[:-1]) / 2
            nearest = order[torch.bucketize(unit[:, columns].contiguous(), edges)]
        states[:, columns] = nearest.to(torch.uint8)
    return states
