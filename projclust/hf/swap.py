"""Swapping a model's input embedding, and everything tied to it, for factorised modules and back.

transformers 5 ties parameters by name: a tied output layer is a stock module of its own whose `weight` is set to the
embedding's after loading, from tables on the model. So tied modules are swapped too, and the tables are extended by the
other factors, on the instance of every sub-model (never on the class).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from projclust.errors import ProjclustError
from projclust.hf.private import restore_ties, rewrite_ties, tied_weights, untie_different
from projclust.recipes.problem import Fitted
from projclust.shapes import CodedShape, FactoredShape
from projclust.tables import (
    CodedEmbedding,
    CodedLMHead,
    CompressedTable,
    FactorizedTable,
    ProjectiveEmbedding,
    ProjectiveLMHead,
)
from projclust.tables.lookup import is_known_lookup


@dataclass(frozen=True)
class DensePart:
    """A dense tensor of the table's height that stays as it was."""

    name: str
    bytes: int
    reason: str


def input_embedding(model: PreTrainedModel) -> tuple[str, nn.Embedding]:
    """The name and module of the token embedding, which must be one that can be compressed."""
    kind = type(model).__name__
    try:
        module = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        module = None
    if isinstance(module, CompressedTable):
        raise ProjclustError(f"the input embedding of this {kind} is compressed already: expand it first")
    if not isinstance(module, nn.Embedding):
        found = "none" if module is None else type(module).__name__
        raise ProjclustError(f"{kind} has no token embedding to compress (its input embedding is {found})")
    _refuse_dense_readers(model)
    if not is_known_lookup(module):
        raise ProjclustError(f"{kind} has an input embedding of class {type(module).__name__}, which is not supported")
    if module.max_norm is not None:
        raise ProjclustError(f"{kind} renormalises its embedding at every lookup (max_norm), which is not supported")
    name = _names_of(model, module)[0]
    # Where the embedding is itself tied to another (Marian), that one is what tie_weights() copies from.
    weight = f"{name}.weight"
    root = tied_weights(model).get(weight, weight).rpartition(".")[0]
    source = model.get_submodule(root)
    return (root, source) if isinstance(source, nn.Embedding) else (name, module)


def tied_names(model: PreTrainedModel) -> list[str]:
    """The names of the modules that are tied to the token embedding."""
    return sorted(_tied_modules(model, *input_embedding(model)))


def settle_ties(model: PreTrainedModel) -> None:
    """Let a dense model's config tie what is equal, and nothing else; see `untie_different`."""
    untie_different(_pretrained_parts(model))
    model.tie_weights()


def swap_embedding(
    model: PreTrainedModel,
    shape: FactoredShape | CodedShape,
    primary: Any = None,
    part: PreTrainedModel | None = None,
) -> Any:
    """Replace the token embedding and every module tied to it by factorised or coded modules that are yet to be filled.

    They have the old weight's device and dtype; scales, padding and biases are kept. Returns the new embedding, whose
    stored tensors the others read; a `primary` that is given takes its place as it is. With a `part` it is the
    embedding of that one, such as the decoder of an EncoderDecoderModel.
    """
    name, old = input_embedding(part or model)
    if part is not None:
        name = _names_of(model, old)[0]
    if old.weight.shape != (shape.height, shape.d):
        rows, columns = old.weight.shape
        raise ProjclustError(
            f"the checkpoint's embedding is {shape.height} x {shape.d}, but the model asks for {rows} x {columns}"
        )
    tied = _tied_modules(model, name, old)
    primary = _compressed(name, old, shape, None) if primary is None else primary
    replacements: dict[str, nn.Module] = dict.fromkeys(_names_of(model, old), primary)
    replacements |= {other: _compressed(other, module, shape, primary) for other, module in tied.items()}
    # What is tied to a coded table holds nothing that could be tied.
    factors = primary.factor_names() if isinstance(primary, FactorizedTable) else []
    # First, for transformers looks up what its tables name.
    _rewrite_tying_tables(model, set(replacements), factors)
    for target, module in replacements.items():
        model.set_submodule(target, module)
    return primary


def swap_fitted(model: PreTrainedModel, fitted: Fitted) -> ProjectiveEmbedding | CodedEmbedding:
    """`swap_embedding`, filled with a table that was fitted; float factors learn where the table did."""
    assert fitted.shape is not None
    trained = input_embedding(model)[1].weight.requires_grad
    embedding: Any = swap_embedding(model, fitted.shape)
    if fitted.coded is not None:
        embedding.set_stored(fitted.coded.stored)
    elif fitted.factors is not None:
        factors = fitted.factors
        embedding.set_factors(factors.labels, factors.coefficients, bases=factors.bases, means=factors.means)
        embedding.requires_grad_(trained)
    model.tie_weights()
    return embedding


def restore_dense(model: PreTrainedModel) -> None:
    """Put stock modules with the rebuilt table back in place of every compressed one: undoes `swap_embedding`."""
    compressed = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, CompressedTable)}
    if not compressed:
        raise ProjclustError("this model holds no compressed embedding")
    if any(name.endswith(".base_layer") for name in compressed):
        raise ProjclustError("an adapter sits on the compressed embedding: save it, and `unload()` it first")
    weights: dict[int, nn.Parameter] = {}  # one for each set of factors: something may have untied a head meanwhile
    rebuilt: dict[int, nn.Module] = {}
    for name, module in compressed.items():
        factor = module.weight if isinstance(module, FactorizedTable) else module.primary
        if id(factor) not in weights:
            trained = not isinstance(factor, nn.Parameter) or factor.requires_grad
            weights[id(factor)] = nn.Parameter(module.dense_weight(), requires_grad=trained)
        if id(module) not in rebuilt:
            rebuilt[id(module)] = module.to_dense(weights[id(factor)])
        model.set_submodule(name, rebuilt[id(module)])
    for _, part in _pretrained_parts(model):
        restore_ties(part)
    model.tie_weights()


def dense_parts(model: PreTrainedModel) -> list[DensePart]:
    """Matrices as high as the vocabulary that stay dense, such as an untied output layer."""
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    parts = []
    for name, module in model.named_modules():
        weight = module.weight if isinstance(module, (nn.Linear, nn.Embedding)) else None
        if weight is not None and weight is not table and len(weight) == len(table):
            reason = "output layer, not tied to the embedding" if module is output else "not tied to the embedding"
            parts.append(DensePart(f"{name}.weight", weight.nbytes, reason))
    return parts


def compressed_parts(model: PreTrainedModel) -> list[tuple[str, PreTrainedModel]]:
    """(prefix, sub-model) of those that were compressed before they became parts of this one, as their configs say."""
    own = {id(config): config for config in vars(model.config).values() if isinstance(config, PretrainedConfig)}
    found: dict[int, tuple[str, PreTrainedModel]] = {}
    for prefix, part in _pretrained_parts(model):
        stated = getattr(own.get(id(part.config)), "quantization_config", None)
        method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
        if method == "projclust":
            found.setdefault(id(part.config), (prefix, part))  # the first is that which holds the others
    return list(found.values())


def _refuse_dense_readers(model: PreTrainedModel) -> None:
    """Models that multiply with the embedding's dense weight themselves, outside any module that could be swapped."""
    for _, part in _pretrained_parts(model):
        kind, config = type(part).__name__, part.config
        gemma = str(config.model_type).startswith(("gemma4", "diffusion_gemma"))
        if gemma or kind in ("MobileBertForMaskedLM", "MobileBertForPreTraining"):
            raise ProjclustError(f"{kind} reads the dense embedding itself: it cannot be compressed")
        if kind in ("DebertaForMaskedLM", "DebertaV2ForMaskedLM") and not getattr(config, "legacy", True):
            raise ProjclustError(
                f"{kind} with legacy=False reads the embedding's dense weight: it cannot be compressed"
            )


def _pretrained_parts(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """(prefix, sub-model) of every PreTrainedModel in `model`, itself included; prefixes end in a dot."""
    return [
        (f"{name}." if name else "", module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PreTrainedModel)
    ]


def _names_of(model: nn.Module, module: nn.Module) -> list[str]:
    return [name for name, other in model.named_modules(remove_duplicate=False) if other is module]


def _tied_modules(model: PreTrainedModel, name: str, old: nn.Embedding) -> dict[str, nn.Module]:
    """Modules, by name, whose weight is tied to the embedding's, by transformers' tables or as the same parameter."""
    ties, weight = tied_weights(model), f"{name}.weight"
    root = ties.get(weight, weight)
    names = {key.rpartition(".")[0] for pair in ties.items() if root in pair for key in pair}
    for other_name, module in model.named_modules(remove_duplicate=False):
        if module is not old and getattr(module, "weight", None) is old.weight:
            names.add(other_name)
    # What the tables tie may be the embedding itself under another name, as after set_input_embeddings.
    return {tied: model.get_submodule(tied) for tied in sorted(names - {name})}


def _compressed(name: str, old: nn.Module, shape: FactoredShape | CodedShape, primary: nn.Module | None) -> Any:
    """The compressed module, yet to be filled, that takes the place of the embedding or of a module tied to it."""
    kind: Any
    if type(old) is nn.Linear:
        kind = CodedLMHead if isinstance(shape, CodedShape) else ProjectiveLMHead
    elif is_known_lookup(old):
        kind = CodedEmbedding if isinstance(shape, CodedShape) else ProjectiveEmbedding
    else:
        raise ProjclustError(f"{name} is tied to the embedding but is a {type(old).__name__}, which is not supported")
    return kind.from_dense(old, shape, primary)


def _rewrite_tying_tables(model: PreTrainedModel, swapped: set[str], factors: list[str]) -> None:
    """In place of every entry that ties a swapped module's weight, tie these factors."""

    def rewritten(prefix: str, table: dict[str, str]) -> dict[str, str]:
        result: dict[str, str] = {}
        for target, source in table.items():
            modules = [key.removesuffix(".weight") for key in (target, source) if key.endswith(".weight")]
            if len(modules) == 2 and any(prefix + module in swapped for module in modules):
                result |= {f"{modules[0]}.{factor}": f"{modules[1]}.{factor}" for factor in factors}
            else:
                result[target] = source
        return result

    for prefix, part in _pretrained_parts(model):
        rewrite_ties(part, partial(rewritten, prefix))
