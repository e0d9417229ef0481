"""Rounding to a few levels, with an fp16 scale for every group of numbers: the baselines of fixed size.

They store nothing: each computes the rows that its decoder would rebuild, so that what rounded scales lose is lost
here, and counts the bytes of all that it would need.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from projclust.coding.integers import CLIPPING, GROUP, NO_CLIPPING, round_to_levels, row_blocks
from projclust.errors import OptionError
from projclust.recipes.problem import Estimate, Fitted, Problem, Rebuild, relative_errors
from projclust.recipes.recipe import Recipe
from projclust.shapes import DenseShape

# Columns of a row that share a scale with nf4; the others have them in groups of `GROUP`, int8 one for a row.
_NORMAL_FLOAT_GROUP = 64
# Rows that an estimate measures.
_SAMPLE_ROWS = 8192

_LARGEST_HALF = 65504.0

# 16 quantiles of a normal distribution, zero among them, scaled to [-1, 1] (Dettmers et al., QLoRA, NeurIPS 2023,
# appendix E).
# fmt: off
_NORMAL_FLOAT = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def settle(recipe: Recipe, table: DenseShape) -> Recipe:
    """The recipe itself, which has one size; see `Recipe.settled`."""
    if recipe.targets:
        bits = table.bits_for_bytes(stored_bytes(recipe, table))
        raise OptionError(f"{recipe.method} has one size, {bits:.4g} bits: drop `{recipe.targets[0]}`")
    return recipe


def stored_bytes(recipe: Recipe, table: DenseShape) -> int:
    """See `Recipe.stored_bytes`."""
    bits, group = _bits_and_group(recipe, table.d)
    scales = -(-table.d // group)  # in float16; the last group of a row may be short
    return table.n * (packed_bytes(table.d, bits) + 2 * scales)


def _bits_and_group(recipe: Recipe, d: int) -> tuple[int, int]:
    """The bits of a code, and how many columns share a scale: with int8 all of a row."""
    bits = int(recipe.method[-1])
    return bits, {"int8": d, "nf4": _NORMAL_FLOAT_GROUP}.get(recipe.method, GROUP)


def fit(recipe: Recipe, problem: Problem) -> Fitted:
    """Round every row; see `Recipe.fit`."""
    size, rebuild = stored_bytes(recipe, problem.shape), _rebuild(recipe, problem.table)
    return Fitted(recipe, problem, size, problem.table.numel(), rebuild=rebuild)


def estimate(recipes: Sequence[Recipe], problem: Problem) -> Iterator[Estimate]:
    """What rounding leaves of a sample of the rows: each is rounded by itself."""
    n, table, sample = problem.shape.n, problem.table, None
    if n > _SAMPLE_ROWS:
        generator = torch.Generator().manual_seed(recipes[0].seed)
        sample = torch.randperm(n, generator=generator)[:_SAMPLE_ROWS]
    for recipe in recipes:
        rebuild = _rebuild(recipe, table)
        errors = relative_errors(rebuild, table, problem.weights, sample)
        yield Estimate(recipe.method, stored_bytes(recipe, problem.shape), errors, sample is not None, rebuild)


def _rebuild(recipe: Recipe, table: Tensor) -> Rebuild:
    """What rounds rows when they are asked for."""
    return lambda ids: _rounded(recipe, table[ids.to(table.device)])


def _rounded(recipe: Recipe, table: Tensor) -> Tensor:
    """(n, d) float32 rows of `table`, every group of columns of a row rounded with one scale."""
    bits, group = _bits_and_group(recipe, table.shape[1])
    factors = NO_CLIPPING if recipe.method == "int8" else CLIPPING
    rebuilt = torch.empty(table.shape, device=table.device)
    for block, into in row_blocks(table, rebuilt):
        for values, place in zip(_groups(block, group), _groups(into, group), strict=True):
            is_normal = recipe.method == "nf4"
            place.copy_(_round_normal_float(values) if is_normal else _round_block(values, bits, factors, None))
    return rebuilt


def to_half(numbers: Tensor) -> Tensor:
    """`numbers` as float16 stores them, in float32; what is too large for it becomes its largest."""
    return numbers.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits, packed."""
    return -(-count * bits // 8)


def round_groups(values: Tensor, bits: int, factors: tuple[float, ...], weights: Tensor | None = None) -> Tensor:
    """(g, m) float32 rows of `values`, each rounded with one float16 scale; see `round_to_levels`."""
    rebuilt = torch.empty_like(values)
    for block, into in row_blocks(values, rebuilt):
        into.copy_(_round_block(block, bits, factors, weights))
    return rebuilt


def _round_block(values: Tensor, bits: int, factors: tuple[float, ...], weights: Tensor | None) -> Tensor:
    levels, scale = round_to_levels(values, bits, factors, to_half, weights)
    return levels.mul_(scale)


def _round_normal_float(values: Tensor) -> Tensor:
    """NF4: the largest magnitude of every group is its float16 scale."""
    levels = torch.tensor(_NORMAL_FLOAT, device=values.device)
    scale = to_half(values.abs().amax(-1, keepdim=True))
    fractions = values / torch.where(scale == 0, 1.0, scale)
    return levels[torch.bucketize(fractions, (levels[1:] + levels[:-1]) / 2)] * scale


def _groups(rows: Tensor, group: int) -> Iterator[Tensor]:
    """Views of `rows` (r, d): the full groups (r, g, group), then the short last one (r, 1, rest), where there are."""
    full = rows.shape[1] // group * group
    if full:
        yield rows[:, :full].unflatten(1, (-1, group))
    if full < rows.shape[1]:
        yield rows[:, full:].unsqueeze(1)
