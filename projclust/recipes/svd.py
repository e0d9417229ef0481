"""Row-weighted truncated SVD with rounded coefficients: the baselines of subspaces at equal bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from projclust.clustering.fit import ClusteringOptions, fit_clustering
from projclust.clustering.rows import rows_at_once
from projclust.coding.integers import NO_CLIPPING
from projclust.errors import OptionError
from projclust.options import Method
from projclust.recipes.problem import Estimate, Fitted, Problem
from projclust.recipes.recipe import Recipe
from projclust.recipes.rounding import packed_bytes, round_groups, to_half
from projclust.shapes import DenseShape, largest

# The columns of coefficients are long, and their largest number is further out than that of a group of 32.
_COLUMN_CLIPPING = tuple(step / 20 for step in range(20, 1, -1))
# They are rounded so many at once: what a line of a cache holds.
_STRIP = 16


def settle(recipe: Recipe, table: DenseShape) -> Recipe:
    """The recipe with a target in bits that some rank meets; see `Recipe.settled`."""
    if table.d == 1:
        raise OptionError(f"{recipe.method} needs a table of more than one column")
    return settle_by_count(recipe, table, _size(recipe, table, 1), _rank(recipe, table))


def settle_by_count(recipe: Recipe, table: DenseShape, least: int, count: int | None) -> Recipe:
    """A baseline of free size with its target in bits.

    Args:
        least: the bytes of the smallest table it has.
        count: the largest rank, or number of parts, within the target; None where there is none.

    Raises:
        OptionError: there is no target, or it is below that.
    """
    budget = recipe.budget(table)
    if budget is None:
        raise OptionError(f"{recipe.method} can have any size and needs a size, as in {recipe.method}:bits=1")
    bits = table.bits_for_bytes(budget) if recipe.bits is None else recipe.bits
    if count is None:
        needed = table.bits_for_bytes(least)
        raise OptionError(f"{recipe.method} takes at least {needed:.4g} bits per weight of this table, not {bits:g}")
    # Beyond the bits of a dense table it stays a size.
    return recipe if bits >= 32 else replace(recipe, bits=bits, size=None)


def stored_bytes(recipe: Recipe, table: DenseShape) -> int:
    """See `Recipe.stored_bytes`."""
    return _size(recipe, table, _rank(recipe, table) or 1)


def _rank(recipe: Recipe, table: DenseShape) -> int | None:
    budget = recipe.budget(table) or 0
    return largest(table.d - 1, lambda rank: _size(recipe, table, rank) <= budget)


def _size(recipe: Recipe, table: DenseShape, rank: int) -> int:
    bits = _code_bits(recipe)
    if bits == 16:
        return 2 * rank * (table.n + table.d)
    scales = 2 * rank + 2 * rank  # of the coefficients' columns and of the basis's rows
    return table.n * packed_bytes(rank, bits) + rank * table.d + scales


def _code_bits(recipe: Recipe) -> int:
    return {"svd-float16": 16, "svd-int8": 8, "svd-int4": 4}[recipe.method]


def fit(recipe: Recipe, problem: Problem) -> Fitted:
    """Decompose and round; see `Recipe.fit`."""
    rank = _rank(recipe, problem.shape) or 1
    return _fitted(recipe, problem, _basis(problem, rank))


def estimate(recipes: Sequence[Recipe], problem: Problem) -> Iterator[Estimate]:
    """What settled recipes of several sizes leave, decomposed once for all of them: no estimate, but quick."""
    ranks = [_rank(recipe, problem.shape) or 1 for recipe in recipes]
    basis = _basis(problem, max(ranks))
    for recipe, rank in dict(zip(recipes, ranks, strict=True)).items():
        fitted = _fitted(recipe, problem, basis[:rank])
        yield Estimate(recipe.method, fitted.bytes, fitted.errors, False, fitted.rows)
        del fitted  # with its coefficients, before the next one is made


def _basis(problem: Problem, rank: int) -> Tensor:
    """(rank, d) the leading right singular vectors."""
    options, table = ClusteringOptions(1, rank, method=Method.SVD), problem.table
    # Halves are widened block by block.
    table = table.float() if table.dtype == torch.float64 else table
    return fit_clustering(table, options, problem.relative_weights).bases[0]


def _fitted(recipe: Recipe, problem: Problem, basis: Tensor) -> Fitted:
    """Rounded coefficients in a rounded basis, which is not quite orthonormal; rows are made when asked for."""
    bits, table = _code_bits(recipe), problem.table
    basis = to_half(basis) if bits == 16 else round_groups(basis, 8, NO_CLIPPING)
    inverse = torch.linalg.pinv(basis.double()).float()
    coefficients, size = torch.empty(len(table), len(basis), device=table.device), rows_at_once(table)
    for rows, into in zip(table.split(size), coefficients.split(size), strict=True):
        own = rows.float() @ inverse
        into.copy_(to_half(own) if bits == 16 else own)
    for columns in coefficients.split(_STRIP, 1) if bits < 16 else ():
        columns.copy_(round_groups(columns.T.contiguous(), bits, _COLUMN_CLIPPING, problem.relative_weights).T)

    def rebuild(ids: Tensor) -> Tensor:
        return coefficients[ids.to(coefficients.device)] @ basis

    return Fitted(recipe, problem, stored_bytes(recipe, problem.shape), table.numel(), rebuild=rebuild)
