"""Codes "auto": classes of rows, and for each coordinate of each class as many bits as it deserves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from projclust.coding.fit import fit_coded
from projclust.coding.predict import Prediction, check_budget, code_rows, predict_coded
from projclust.errors import OptionError
from projclust.options import Codes
from projclust.recipes.problem import Errors, Estimate, Fitted, Problem, decoder
from projclust.recipes.recipe import Recipe
from projclust.recipes.subspaces import coded_table
from projclust.shapes import DenseShape


def settle(recipe: Recipe, table: DenseShape) -> Recipe:
    """The recipe with a target in bits; see `Recipe.settled`."""
    budget = recipe.budget(table)
    if recipe.ratio is not None:
        budget = int((1 - recipe.ratio) * table.bytes)
    if budget is None:
        raise OptionError("codes auto need a size, as in projective:bits=0.5: give `bits`, `size` or `ratio`")
    check_budget(budget, table.n, table.d)
    bits = table.bits_for_bytes(budget) if recipe.bits is None else recipe.bits
    return replace(recipe, codes=Codes.AUTO, bits=bits, ratio=None, size=None)


def stored_bytes(recipe: Recipe, table: DenseShape) -> int:
    """See `Recipe.stored_bytes`; the codes take a few bytes less."""
    return table.bytes_for_bits(recipe.bits or 0)


def fit(recipe: Recipe, problem: Problem) -> Fitted:
    """Code the rows; see `Recipe.fit`."""
    budget = stored_bytes(recipe, problem.shape)
    coded = fit_coded(
        problem.table_on_device,
        budget,
        sample_weight=problem.weights,
        sensitivity=problem.sensitivity,
        progress=problem.on_rows,
    )
    return coded_table(recipe, problem, coded)


def estimate(recipes: Sequence[Recipe], problem: Problem) -> Iterator[Estimate]:
    """What settled recipes of several sizes would leave, predicted together."""
    budgets = [stored_bytes(recipe, problem.shape) for recipe in recipes]
    for found in predict_coded(problem.table, budgets, problem.weights, problem.sensitivity):

        def rebuild(ids: Tensor, prediction: Prediction = found) -> Tensor:
            return decoder(code_rows(prediction, ids.to(problem.table.device))).dense_weight()

        errors = Errors(found.relative_error, found.weighted_relative_error)
        yield Estimate("auto", found.bytes, errors, True, rebuild, rebuilds_at_once=True)
