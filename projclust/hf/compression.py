"""Compressing the embedding of a model that is in memory."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers import AutoHfQuantizer

from projclust.clustering.inputs import as_weights
from projclust.errors import OptionError, ProjclustError
from projclust.hf.body import RoundedBody, check_body, round_body
from projclust.hf.config import ProjClustConfig
from projclust.hf.generation import own_text_of
from projclust.hf.resize import heed_resizes
from projclust.hf.sensitivity import model_sensitivity
from projclust.hf.swap import input_embedding, restore_dense, settle_ties, swap_fitted
from projclust.hf.twin import check_kind, check_twin
from projclust.hf.whole import best_recipe, recipes_of_size
from projclust.options import Sensitivity
from projclust.recipes.problem import Errors, Fitted, Problem, RowErrors
from projclust.recipes.recipe import Recipe
from projclust.weights.choose import choose_weights
from projclust.weights.names import GIVEN
from projclust.weights.row_weights import RowWeights

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


@dataclass(frozen=True)
class Compression:
    """What a compression did; the errors are those of the rows as the model now reads them.

    `body` is what became of the weights beside the table, where these were rounded.
    """

    config: ProjClustConfig
    fitted: Fitted
    row_errors: RowErrors
    body: RoundedBody | None = None

    @property
    def errors(self) -> Errors:
        """Those of all rows."""
        return self.row_errors.summed(self.fitted.problem.weights)


@dataclass(frozen=True)
class Run:
    """Where a compression computes, and who is told how far it is; see `Problem`."""

    device: torch.device | str | None = None
    process_group: "dist.ProcessGroup | None" = None
    on_step: Callable[[int, int, float], None] | None = None
    on_rows: Callable[[int, int], None] | None = None


def compress_model(
    model: ModelT,
    k: int | None = None,
    j: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sample_weight: Any = None,
    device: torch.device | str | None = None,
    twin_check: bool = True,
    **options: Any,
) -> ModelT:
    """Compress the input embedding of a dense model, in place; `save_pretrained` then writes a compressed checkpoint.

    It does what ``projclust compress`` does with the same options, and gives the same bytes.

    Args:
        model: any transformers model with a token embedding.
        k: the number of subspaces.
        j: their dimension; or give one of the options ``ratio`` (0.4 takes 40% of the parameters off), ``bits`` (for
            each entry of the table, everything counted) and ``size`` (``"2MB"``).
        tokenizer: the model's, for row weights by word frequency; by default the one beside the model's weights.
        sample_weight: (n,) row weights, tensor or array, in place of those that the option ``weights`` names.
        device: where to compute; by default where the table is.
        twin_check: whether to refuse a model that answers otherwise than with the same rows in a dense table.
        options: the other options of `projclust.recipes.recipe.Recipe`, by name: ``codes="int8"``, ``affine=True``, ...

    Returns:
        the same model.

    Raises:
        ProjclustError: the model or the options are unsuitable; the model is then unchanged.

    Example::

        model = compress_model(AutoModel.from_pretrained("roberta-base"), bits=0.5)
        model.save_pretrained("roberta-base-projclust")
    """
    recipe = Recipe.of({"k": k, "j": j, **options}).require_target()
    weights = weights_of(model, recipe, tokenizer, sample_weight)
    compress_embedding(model, recipe, weights, Run(device), twin_check=twin_check)
    return model


# For help() and editors: every option of a recipe by name.
_own = signature(compress_model)
_named = {part.name: Parameter(part.name, Parameter.KEYWORD_ONLY, default=part.default) for part in fields(Recipe)}
compress_model.__signature__ = _own.replace(  # type: ignore[attr-defined]
    parameters=[
        *(parameter for parameter in _own.parameters.values() if parameter.name != "options"),
        *(parameter for name, parameter in _named.items() if name not in _own.parameters),
    ]
)


def unfreeze(model: ModelT) -> ModelT:
    """Let a coded embedding learn: its means, deviations and decoders become parameters, in place.

    Codes themselves never change, and what is trained is rounded to what is stored in every step, so the checkpoint
    keeps its size. To be called before the optimizer is made. Float factors are parameters from the start.

    Returns:
        the same model.

    Example::

        model = unfreeze(AutoModel.from_pretrained("roberta-base-projclust"))
        optimizer = torch.optim.AdamW(model.parameters())
    """
    table = model.get_input_embeddings()
    # Marian's is tied to another, which holds what learns.
    getattr(table, "primary", table).requires_grad_(True)
    return model


def weights_of(
    model: PreTrainedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, sample_weight: Any
) -> RowWeights:
    """The row weights of a model in memory: those given, those that the recipe names, or its default ones.

    Where the default ones are word frequencies and there is no tokenizer, all rows weigh the same, with a warning.
    """
    n = input_embedding(model)[1].num_embeddings
    if sample_weight is not None:
        if recipe.weights is not None or recipe.weights_exponent is not None:
            raise OptionError("give `sample_weight` or `weights`, not both")
        return RowWeights(GIVEN, as_weights(sample_weight, n, torch.device("cpu")))

    def own_tokenizer() -> PreTrainedTokenizerBase:
        # Not at the top: the quantizer, and so this module, is imported as soon as transformers' models are, which
        # checkpoints.load may be the first to ask for.
        from projclust.checkpoints.load import load_tokenizer

        if tokenizer is not None:
            return tokenizer
        if not model.name_or_path:
            raise ProjclustError(
                "a model without a folder has no tokenizer: give `tokenizer`, `weights` or `sample_weight`"
            )
        return load_tokenizer(Path(model.name_or_path))

    return choose_weights(
        recipe,
        own_tokenizer,
        n,
        warn=lambda text: warnings.warn(text, stacklevel=4),
        own_text=own_text_of(model, recipe.seed),
    )


def compress_embedding(
    model: PreTrainedModel,
    recipe: Recipe,
    weights: RowWeights | None = None,
    run: Run | None = None,
    config: ProjClustConfig | None = None,
    twin_check: bool = True,
) -> Compression:
    """Fit, swap and fill the embedding of `model` as a recipe says.

    With a process group all its processes, which have the same model, share the fit and get the same result. The
    weights are by default uniform. `config` has fields to keep beside those of the recipe; it stays as it is.
    `twin_check` is whether to look, before the fit and after it, how the model reads such a table.
    """
    weights, run = weights or RowWeights(), run or Run()
    old = input_embedding(model)[1]
    table = old.weight.detach()
    if table.is_meta:
        raise ProjclustError("the model has no weights in memory (it is on the meta device)")
    if not recipe.is_stored:
        raise OptionError(f"`method` {recipe.method} is a baseline that is measured, not stored")
    settle_ties(model)
    problem = Problem.of(table, weights.values, **vars(run))
    recipe = best_recipe(model, recipes_of_size(model, recipe), weights)
    if recipe.body is not None:
        check_body(model, recipe.body)
    if twin_check:
        check_kind(model, recipe, problem)
    if recipe.is_auto and recipe.sensitivity == Sensitivity.MODEL:
        sensitivity = model_sensitivity(model, weights.draws, recipe.seed, weights.own_text)
        problem = Problem.of(table, weights.values, sensitivity=sensitivity, **vars(run))
    fitted = recipe.fit_to(problem)
    assert fitted.shape is not None
    config = (config or ProjClustConfig()).of_table(recipe, fitted.shape, weights.as_dict())
    if twin_check:
        check_twin(model, fitted)
    embedding = swap_fitted(model, fitted)
    row_errors = RowErrors.of(embedding.rows, table)
    try:
        _refuse_useless(row_errors.summed(weights.values), table.dtype)
    except ProjclustError:
        restore_dense(model)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(table)
        raise
    heed_resizes(model)
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
    model.quantization_method = "projclust"
    model.is_quantized = False
    model.config.quantization_config = config
    body = None
    if recipe.body is not None:
        body = round_body(model, recipe.body)
        model.hf_quantizer.body_scales = body.scales
    return Compression(config, fitted, row_errors, body)


# What rounding may add to an error of one, that of rows that are all zeros.
_ROUNDING = 1e-3


def _refuse_useless(errors: Errors, dtype: torch.dtype) -> None:
    """Refuse rows that are not finite, or no closer to the table's than zeros would be."""
    if not all(map(math.isfinite, errors)):
        raise ProjclustError(
            f"the compressed rows leave the range of {str(dtype).removeprefix('torch.')}, for the table's entries come "
            "close to its end: convert the model to float32 or bfloat16 first"
        )
    if max(errors) > 1 + _ROUNDING:
        raise ProjclustError(
            f"the compressed table would be further off than zeros (relative error {max(errors):.3g}): "
            "give it more bytes, or other `weights` or `codes`"
        )
