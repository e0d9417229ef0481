"""Sizes of a whole model: how its body is stored, and what that leaves for the table."""

from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from projclust.coding.predict import least_bytes
from projclust.errors import OptionError
from projclust.hf.body import check_body, rounded, saved_bytes
from projclust.hf.probe import Outputs, Probe
from projclust.hf.sensitivity import model_sensitivity
from projclust.hf.swap import input_embedding
from projclust.options import Body, Codes, Sensitivity, SizeOf
from projclust.recipes.problem import Problem
from projclust.recipes.recipe import Recipe
from projclust.shapes import DenseShape, parse_size
from projclust.weights.row_weights import RowWeights

# What a header of safetensors says of a tensor beside its name, and how many tensors a coded table has.
_HEADER, _TABLE_TENSORS = 100, 10
# Codes have no more bits a weight.
MOST_BITS = 8


def recipes_of_size(model: PreTrainedModel, recipe: Recipe, beside: int = 0) -> list[Recipe]:
    """The settled recipes that bring a whole model to the size that one asks for, one for each way to store the body.

    Args:
        model: a dense one.
        recipe: where its size is that of the embedding, it is the only one.
        beside: bytes of what else the checkpoint holds.

    Raises:
        OptionError: the model cannot be so small, or is smaller already.
    """
    table = input_embedding(model)[1].weight
    n, d = table.shape
    shape = DenseShape(n, d, str(table.dtype).removeprefix("torch."))
    if recipe.size_of == SizeOf.EMBEDDING:
        return [recipe.settled(shape)]
    assert recipe.size is not None
    budget, found = parse_size(recipe.size), []
    others = _bytes_of_others(model) + beside
    if budget >= others + table.nbytes:
        raise OptionError(f"the model has {others + table.nbytes:,} bytes as it is: `size` must be less")
    bodies = [None, *Body] if recipe.body is None else [recipe.body]
    left = {body: budget - others + saved_bytes(model, body) for body in bodies}
    for body, size in left.items():
        if size >= least_bytes(n, d):
            at_most = min(size, MOST_BITS * n * d // 8)
            found.append(replace(recipe, size_of=SizeOf.EMBEDDING, size=str(at_most), body=body, codes=Codes.AUTO))
    # A table of the most bits there are gains nothing from the bytes that a smaller body leaves over, and so the size
    # may not be used up.
    enough = [one for one in found if int(one.size or 0) == MOST_BITS * n * d // 8]
    found = [one for one in found if one not in enough[1:]]
    if not found:
        least = budget - max(left.values()) + least_bytes(n, d)
        raise OptionError(f"`size` {recipe.size} is too small: the least for this model is {least:,} bytes")
    if found[-1].body is not None:
        check_body(model, found[-1].body)
    return [one.settled(shape) for one in found]


def best_recipe(
    model: PreTrainedModel,
    recipes: list[Recipe],
    weights: RowWeights,
    stage: Callable[[str], None] = lambda text: None,
) -> Recipe:
    """The one of several settled recipes with which a model's outputs change least; no data is needed.

    The tables are predicted, not coded whole, and the bodies are rounded as they will be. The model comes out as it
    went in.
    """
    if len(recipes) == 1:
        return recipes[0]
    stage("measuring how small the body may be")
    sensitivity = None
    if recipes[0].sensitivity == Sensitivity.MODEL:
        sensitivity = model_sensitivity(model, weights.draws, recipes[0].seed, weights.own_text)
    problem = Problem.of(input_embedding(model)[1].weight.detach(), weights.values, sensitivity=sensitivity)
    dense = Probe(model, weights.draws, recipes[0].seed)
    found: list[Outputs] = []
    for recipe, table in zip(recipes, recipes[0].estimate(problem, recipes[1:]), strict=True):
        rows = dense.rows(table)
        with rounded(model, recipe.body):
            found.append(dense.outputs(rows))
        stage(f"body {recipe.body or 'as it is'}, table of {table.bytes:,} bytes: {_in_words(found[-1])}")
    losses = [-outputs.cosine if outputs.kl is None else outputs.kl for outputs in found]
    return recipes[losses.index(min(losses))]


def _in_words(outputs: Outputs) -> str:
    return f"cosine {outputs.cosine:.4f}" if outputs.kl is None else f"KL divergence {outputs.kl:.4f}"


def _bytes_of_others(model: PreTrainedModel) -> int:
    """The bytes of a checkpoint of the model, its header included, without those of the table's rows."""
    state, table = model.state_dict(), input_embedding(model)[1].weight
    once = {(tensor.data_ptr(), tensor.numel()): (name, tensor) for name, tensor in state.items()}
    tensors = sum(tensor.numel() * tensor.element_size() + len(name) + _HEADER for name, tensor in once.values())
    return tensors - table.nbytes + _TABLE_TENSORS * _HEADER
