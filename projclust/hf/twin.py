"""Whether a model reads a compressed table as it reads the same rows in a dense one.

Models are free to look at their tables in ways of their own: to cast to the dtype of a weight, to multiply with it
themselves. What no one foresaw is seen here: the same sequences, read by the model and by a copy of it that shares all
its parameters but the table.
"""

from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from projclust.checkpoints.source import one_line
from projclust.coding.codebooks import NUMBER_OF
from projclust.coding.fit import CodedMatrix
from projclust.coding.stored import SideTables, store_side_tables
from projclust.errors import ProjclustError
from projclust.hf.probe import rows_replaced
from projclust.hf.sensitivity import measuring
from projclust.hf.sequences import (
    draw_sequences,
    possible_inputs,
    sequence_length,
    special_token,
    token_frequencies,
)
from projclust.hf.swap import input_embedding, swap_fitted
from projclust.options import Ranks
from projclust.recipes.problem import Factors, Fitted, Problem
from projclust.recipes.recipe import Recipe
from projclust.shapes import FactoredShape

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

_SHAPE = (4, 16)
# Rows whose logits are compared, beside those that are read.
_ROWS = 4096
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "unk", "mask", "decoder_start", "forced_bos")
# The rank of a table that stands for one that is yet to be fitted.
_RANK = 8
# By how much of their size outputs may differ: sums in another order, and so many times what rounding the rows does to
# this model. Nonsense differs by 1 or more; where the tolerance comes near that, nothing can be told.
_TOLERANCE, _ROUNDINGS, _UNTOLD = 1e-3, 2, 0.9

_SKIP = "`projclust compress --no-twin-check` and `twin_check=False` in Python go without this test"


def check_kind(model: PreTrainedModel, recipe: Recipe, problem: Problem) -> None:
    """Refuse a model that would misread such a table as a recipe makes, before one is fitted; see `check_twin`."""
    if problem.shape.d > 1:
        check_twin(model, _random_table(recipe, problem))


def check_twin(model: PreTrainedModel, fitted: Fitted) -> None:
    """Refuse a dense model that makes something else of a table than of the same rows in its own.

    It comes out unchanged. One that cannot be called with what we have, or that rounding alone disturbs, is not judged.

    Raises:
        ProjclustError: it does, or it fails.
    """
    kind, question = type(model).__name__, _Question.of(model)
    if question is None:
        return
    twin = _with_own_table(model)
    table = swap_fitted(twin, fitted)
    rows = fitted.rows(question.rows).to(question.rows.device, table.dtype)
    expected = question.answer(model, rows)
    if not expected.isfinite().all():
        return
    noise = _difference(question.answer(model, rows * _rounding(rows)), expected)
    tolerance = _TOLERANCE + _ROUNDINGS * noise
    if not tolerance < _UNTOLD:
        return
    try:
        found = question.answer(twin)
    except _FAILURES as error:
        raise ProjclustError(
            f"{kind} does not run with its table stored like this ({one_line(error)}): {_SKIP}"
        ) from error
    lost = _difference(found, expected) if found.shape == expected.shape else float("inf")
    if not lost <= tolerance:
        raise ProjclustError(
            f"{kind} reads its embedding in a way of its own, and answers otherwise where it is stored like this "
            f"(relative difference {lost:.2g}): it cannot be compressed so; {_SKIP}"
        )


# What transformers' models raise when something about their inputs is not as they want it.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


class _Question(NamedTuple):
    """What a model is called with, and the rows (m,) of its table of n that bear on what is compared."""

    inputs: dict[str, Any]
    rows: Tensor
    n: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Question | None":
        """The first question that the model answers; None where there is none."""
        embedding = input_embedding(model)[1]
        n, device = embedding.num_embeddings, embedding.weight.device
        shape = (_SHAPE[0], sequence_length(model, _SHAPE[1]))
        generator = torch.Generator().manual_seed(0)
        ids = draw_sequences(model, token_frequencies(model, None, n), shape, generator)
        rows = torch.arange(n)
        if n > _ROWS:
            # Models add special tokens of their own accord.
            special = torch.tensor([token for token in (special_token(model, [name], n) for name in _SPECIAL) if token])
            rows = torch.cat([ids.flatten(), special.long(), torch.randint(n, (_ROWS,), generator=generator)]).unique()
        for inputs in possible_inputs(model, ids.to(device)):
            with suppress(*_FAILURES):
                first_output(model, inputs)
                return cls(inputs, rows.to(device), n)
        return None

    def answer(self, model: PreTrainedModel, rows: Tensor | None = None) -> Tensor:
        """(positions, m) what a model makes of the sequences, with these rows in its dense table where they are given.

        Logits are compared among the rows only, whatever normalisation over all others added to them.
        """
        if rows is not None:
            with rows_replaced(input_embedding(model)[1], self.rows, rows):
                return self.answer(model)
        outputs = first_output(model, self.inputs)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        if outputs.shape[1] == self.n > len(self.rows):
            outputs = outputs[:, self.rows].double()
            return outputs - outputs.mean(1, keepdim=True)
        return outputs.double()


def first_output(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """The first output of a model in evaluation mode: logits, or hidden states of a model without an output layer.

    Raises:
        TypeError: it is no matrix of floats; whatever the model raises.
    """
    device, dtype = model.get_input_embeddings().weight.device, model.dtype
    noise = {
        name: value.to(dtype) for name, value in inputs.items() if name.startswith(("pixel", "input_v", "input_f"))
    }
    with measuring(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # some models draw random numbers in evaluation too
        answer = model(**{**inputs, **noise})
    for found in answer.values() if isinstance(answer, dict) else answer:
        if isinstance(found, Tensor) and found.is_floating_point() and found.dim() > 1:
            return found
    raise TypeError("it answers with no floats")


def _difference(found: Tensor, expected: Tensor) -> float:
    """That of positions relative to their size: at three quarters of them it is at most this.

    A router that rounding tips over sends one position another way, and says nothing of the others.
    """
    lost = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-30)
    return float(lost.nan_to_num(nan=torch.inf).quantile(0.75))


def _rounding(rows: Tensor) -> Tensor:
    """Factors within two units of the last place of one."""
    noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rows.device)
    return 1 + (4 * noise - 2) * torch.finfo(rows.dtype).eps


def _with_own_table(model: ModelT) -> ModelT:
    """A copy that shares all parameters, buffers and configs, in modules of its own, tied as its config says.

    That is how it will be loaded, whatever is tied in memory.
    """
    shared: list[Any] = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    shared += [getattr(model, "hf_quantizer", None)]  # which may hold a tokenizer
    shared += [*model.parameters(), *model.buffers()]
    twin = deepcopy(model, {id(own): own for own in shared})
    twin.tie_weights()
    return twin


def _random_table(recipe: Recipe, problem: Problem) -> Fitted:
    """A table of random rows as large as the problem's, stored as the recipe stores one."""
    n, d = problem.shape.n, problem.shape.d
    j = min(_RANK, d - 1)
    generator = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(d, j, generator=generator))[0].T
    size = float(problem.table[:_ROWS].float().square().mean().sqrt().clamp(1e-2, 10)) * (d / j) ** 0.5
    if recipe.is_auto or (recipe.codes is not None and recipe.codes.bits):
        coded = _random_codes(n, bases.unsqueeze(0), size, generator)
        return Fitted(recipe, problem, coded.shape.bytes, 0, shape=coded.shape, coded=coded)
    shape, labels = FactoredShape(n, d, k=1, j=j), torch.zeros(n, dtype=torch.int64)
    if recipe.ranks == Ranks.ADAPTIVE and j > 1 and n > 1:
        shape = FactoredShape(n, d, k=2, j=j, ranks=(j, j - 1), sizes=(n - n // 2, n // 2))
        labels[n - n // 2 :] = 1
    coefficients = size * torch.randn(n, j, generator=generator)
    coefficients[labels == 1, -1] = 0
    factors = Factors(labels, coefficients, bases.expand(shape.k, -1, -1), None)
    return Fitted(recipe, problem, 0, 0, shape=shape, factors=factors)


def _random_codes(n: int, bases: Tensor, size: float, generator: torch.Generator) -> CodedMatrix:
    """Rows of random bytes: any are eight-bit coordinates."""
    j = bases.shape[1]
    side = SideTables(
        kinds=torch.full((1, j), NUMBER_OF["int8"], dtype=torch.uint8),
        deviations=torch.full((1, j), size / 2**6),
        means=None,
        decoders=bases,
    )
    codes = torch.randint(1, 256, (n * j,), generator=generator, dtype=torch.uint8)
    stored = {**store_side_tables(side, 8)[0], "weight": codes}
    return CodedMatrix(side.shape([n], 8), stored, torch.zeros(n, dtype=torch.uint8), [j], [j])
