"""Swapping a model's input embedding, and everything tied to it, for factorised modules and back.

transformers 5 ties parameters by name: a tied output layer is a stock module of its own whose `weight` is set to the
embedding's after loading, from tables on the model. So tied modules are swapped too, and the tables are extended by the
other factors, on the instance of every sub-model (never on the class).
"""

from dataclasses import dataclass
from operator import mul
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from projclust.coding.stored import CodedShape
from projclust.errors import ProjclustError
from projclust.modules import (
    CodedEmbedding,
    CodedLMHead,
    CodedTable,
    CompressedTable,
    FactorizedTable,
    ProjectiveEmbedding,
    ProjectiveLMHead,
)
from projclust.modules.lookup import EmbeddingLookup

_SAVED_TABLES = "_projclust_dense_ties"


@dataclass(frozen=True)
class Shape:
    """The shape of a factorised table of n rows and d columns.

    Attributes:
        k: number of subspaces.
        j: their rank, where they have no `ranks` of their own.
        affine: whether they have means.
        ranks, sizes: of unequal ranks, the rank and the rows of each cluster.
    """

    n: int
    d: int
    k: int
    j: int
    affine: bool
    ranks: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def rank(self) -> int | tuple[int, ...]:
        """What the modules take for the rank."""
        return self.j if self.ranks is None else self.ranks

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored tensors. As numbers alone: a damaged config.json may ask for absurd ones."""
        shared = {"means": (self.k, self.d), "clusters": (self.n,)}
        if self.ranks is None or self.sizes is None:
            return {"weight": (self.n, self.j), "bases": (self.k, self.j, self.d), **shared}
        return {"weight": (sum(map(mul, self.sizes, self.ranks)),), "bases": (sum(self.ranks), self.d), **shared}


@dataclass(frozen=True)
class DensePart:
    """A dense tensor of the table's height that stays as it was."""

    name: str
    bytes: int
    reason: str


def input_embedding(model: PreTrainedModel) -> tuple[str, nn.Embedding]:
    """The name and module of the token embedding.

    Raises:
        ProjclustError: the model has none, or one that cannot be factorised, by name and reason.
    """
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
    if type(module) is not nn.Embedding and not _is_scaled(module):
        raise ProjclustError(f"{kind} has an input embedding of class {type(module).__name__}, which is not supported")
    if module.max_norm is not None:
        raise ProjclustError(f"{kind} renormalises its embedding at every lookup (max_norm), which is not supported")
    name = _names_of(model, module)[0]
    # Where the embedding is itself tied to another (Marian), that one is what tie_weights() copies from.
    root = _root(model, f"{name}.weight").rpartition(".")[0]
    source = model.get_submodule(root)
    return (root, source) if isinstance(source, nn.Embedding) else (name, module)


def swap_embedding(model: PreTrainedModel, shape: Shape | CodedShape) -> ProjectiveEmbedding | CodedEmbedding:
    """Replace the token embedding and every module tied to it by factorised or coded modules that are yet to be filled.

    They have the old weight's device and dtype; scales, padding and biases are kept.

    Returns:
        the new primary embedding.

    Raises:
        ProjclustError: see `input_embedding`; or a tied module that cannot be factorised.
    """
    name, old = input_embedding(model)
    if old.weight.shape != (shape.n, shape.d):
        rows, columns = old.weight.shape
        raise ProjclustError(
            f"the checkpoint's embedding is {shape.n} x {shape.d}, but the model asks for {rows} x {columns}"
        )
    tied = _tied_modules(model, name, old)
    primary = _compressed_embedding(old, shape, None)
    replacements: dict[str, nn.Module] = dict.fromkeys(_names_of(model, old), primary)
    for tied_name, module in tied.items():
        replacements[tied_name] = _compressed_tie(tied_name, module, shape, primary)
    # Of a coded table its secondaries hold nothing that could be tied.
    factors = primary.factor_names() if isinstance(primary, FactorizedTable) else []
    # First, for transformers looks up what its tables name.
    _rewrite_tying_tables(model, set(replacements), factors)
    for target, module in replacements.items():
        model.set_submodule(target, module)
    return primary


def restore_dense(model: PreTrainedModel) -> None:
    """Put stock modules with the rebuilt table back in place of every compressed one: undoes `swap_embedding`."""
    compressed = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, CompressedTable)}
    if not compressed:
        raise ProjclustError("this model holds no compressed embedding")
    weights: dict[int, nn.Parameter] = {}  # one for each set of factors: something may have untied a head meanwhile
    rebuilt: dict[int, nn.Module] = {}
    for name, module in compressed.items():
        factor = module.weight if isinstance(module, FactorizedTable) else module.primary
        if id(factor) not in weights:
            trained = not isinstance(factor, nn.Parameter) or factor.requires_grad
            weights[id(factor)] = nn.Parameter(module.dense_weight(), requires_grad=trained)
        if id(module) not in rebuilt:
            rebuilt[id(module)] = _dense_module(module, weights[id(factor)]).train(module.training)
        model.set_submodule(name, rebuilt[id(module)])
    for _, part in _pretrained_parts(model):
        if _SAVED_TABLES in part.__dict__:
            part.all_tied_weights_keys, own = part.__dict__.pop(_SAVED_TABLES)
            # The class's own table shows again once the instance's is gone; some instances had one.
            part.__dict__.pop("_tied_weights_keys", None)
            if own is not None:
                part._tied_weights_keys = own
            part.__dict__.pop("_adjust_bias", None)
    model.tie_weights()


def dense_parts(model: PreTrainedModel) -> list[DensePart]:
    """Matrices as high as the vocabulary that compression leaves dense, such as an untied output layer."""
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    parts = []
    for name, module in model.named_modules():
        weight = module.weight if isinstance(module, (nn.Linear, nn.Embedding)) else None
        if weight is not None and weight is not table and len(weight) == len(table):
            reason = "output layer, not tied to the embedding" if module is output else "not tied to the embedding"
            parts.append(DensePart(f"{name}.weight", weight.numel() * weight.element_size(), reason))
    return parts


def _is_scaled(module: nn.Embedding) -> bool:
    return type(module).__name__.endswith("ScaledWordEmbedding") and _scale_of(module) is not None


def _scale_of(module: nn.Embedding) -> float | None:
    # The scalar first: `embed_scale` may be a buffer without data while the model is on the meta device.
    for attribute in ("scalar_embed_scale", "embed_scale"):
        value = getattr(module, attribute, None)
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _refuse_dense_readers(model: PreTrainedModel) -> None:
    """Models that multiply with the embedding's dense weight themselves, outside any module that could be swapped."""
    for _, part in _pretrained_parts(model):
        kind, config = type(part).__name__, part.config
        if kind in ("MobileBertForMaskedLM", "MobileBertForPreTraining"):
            raise ProjclustError(f"{kind} reads the dense embedding itself: it cannot be compressed")
        if kind in ("DebertaForMaskedLM", "DebertaV2ForMaskedLM") and not getattr(config, "legacy", True):
            raise ProjclustError(
                f"{kind} with legacy=False reads the embedding's dense weight: it cannot be compressed"
            )
        if str(config.model_type).startswith(("gemma4", "diffusion_gemma")):
            raise ProjclustError(f"{kind} reads the dense embedding itself: it cannot be compressed")


def _pretrained_parts(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """(prefix, sub-model) of every PreTrainedModel in `model`, itself included; prefixes end in a dot."""
    return [
        (f"{name}." if name else "", module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PreTrainedModel)
    ]


def _names_of(model: nn.Module, module: nn.Module) -> list[str]:
    return [name for name, other in model.named_modules(remove_duplicate=False) if other is module]


def _root(model: PreTrainedModel, weight: str) -> str:
    """The parameter that `weight` is tied to by transformers' table, or itself."""
    root: str = (getattr(model, "all_tied_weights_keys", None) or {}).get(weight, weight)
    return root


def _tied_modules(model: PreTrainedModel, name: str, old: nn.Embedding) -> dict[str, nn.Module]:
    """Modules, by name, whose weight is tied to the embedding's, by transformers' tables or as the same parameter."""
    root = _root(model, f"{name}.weight")
    pairs = (getattr(model, "all_tied_weights_keys", None) or {}).items()
    names = {key.rpartition(".")[0] for pair in pairs if root in pair for key in pair}
    for other_name, module in model.named_modules(remove_duplicate=False):
        if getattr(module, "weight", None) is old.weight:
            names.add(other_name)
    modules = {tied: model.get_submodule(tied) for tied in sorted(names)}
    return {tied: module for tied, module in modules.items() if module is not old}


def _compressed_embedding(
    old: nn.Embedding, shape: Shape | CodedShape, primary: CompressedTable | None
) -> ProjectiveEmbedding | CodedEmbedding:
    new: ProjectiveEmbedding | CodedEmbedding
    if isinstance(shape, CodedShape):
        assert primary is None or isinstance(primary, CodedTable)
        new = CodedEmbedding(shape, old.padding_idx, _scale_of(old), old.weight.dtype, old.weight.device, primary)
    else:
        assert primary is None or isinstance(primary, FactorizedTable)
        new = _factorised_embedding(old, shape, primary)
    new.dense_class = type(old)
    new.training = old.training
    return new


def _factorised_embedding(old: nn.Embedding, shape: Shape, primary: FactorizedTable | None) -> ProjectiveEmbedding:
    return ProjectiveEmbedding(
        shape.n,
        shape.d,
        shape.k,
        shape.rank,
        shape.affine,
        padding_idx=old.padding_idx,
        scale=_scale_of(old),
        dtype=old.weight.dtype,
        device=old.weight.device,
        primary=primary,
        cluster_sizes=shape.sizes,
    )


def _compressed_tie(
    name: str, old: nn.Module, shape: Shape | CodedShape, primary: ProjectiveEmbedding | CodedEmbedding
) -> CompressedTable:
    if type(old) is nn.Linear:
        head: ProjectiveLMHead | CodedLMHead
        if isinstance(shape, CodedShape):
            assert isinstance(primary, CodedTable)
            head = CodedLMHead(shape, dtype=old.weight.dtype, device=old.weight.device, primary=primary)
        else:
            assert isinstance(primary, FactorizedTable)
            head = ProjectiveLMHead(
                shape.d,
                shape.n,
                shape.k,
                shape.rank,
                shape.affine,
                dtype=old.weight.dtype,
                device=old.weight.device,
                primary=primary,
                cluster_sizes=shape.sizes,
            )
        head.bias = old.bias  # the parameter itself: it may be tied elsewhere
        head.training = old.training
        return head
    if isinstance(old, nn.Embedding) and (type(old) is nn.Embedding or _is_scaled(old)):
        return _compressed_embedding(old, shape, primary)
    raise ProjclustError(f"{name} is tied to the embedding but is a {type(old).__name__}, which is not supported")


def _rewrite_tying_tables(model: PreTrainedModel, swapped: set[str], factors: list[str]) -> None:
    """In place of every entry that ties a swapped module's weight, tie these factors."""

    def rewritten(table: dict[str, str], prefix: str) -> dict[str, str]:
        result: dict[str, str] = {}
        for target, source in table.items():
            modules = [key.removesuffix(".weight") for key in (target, source) if key.endswith(".weight")]
            if len(modules) == 2 and any(prefix + module in swapped for module in modules):
                result |= {f"{modules[0]}.{factor}": f"{modules[1]}.{factor}" for factor in factors}
            else:
                result[target] = source
        return result

    for prefix, part in _pretrained_parts(model):
        part._adjust_bias = _keep_bias
        part.__dict__[_SAVED_TABLES] = (dict(part.all_tied_weights_keys), part.__dict__.get("_tied_weights_keys"))
        # A part may tie nothing itself and yet inherit entries from its own parts (BART with a task's head).
        part.all_tied_weights_keys = rewritten(part.all_tied_weights_keys, prefix)
        if getattr(part.config, "tie_word_embeddings", False) and part._tied_weights_keys:
            part._tied_weights_keys = rewritten(part.get_expanded_tied_weights_keys(), prefix)


def _keep_bias(output_embeddings: nn.Module, input_embeddings: nn.Module) -> None:
    """In place of what transformers does after tying: it stretches the output layer's bias to the length of `weight`,
    which is another than the vocabulary's where ranks are unequal.
    """


def _dense_module(module: CompressedTable, weight: nn.Parameter) -> nn.Module:
    if isinstance(module, EmbeddingLookup):
        options: dict[str, Any] = {} if module.scale is None else {"embed_scale": module.scale}
        # With one row, for the weight is replaced next; and without touching anybody's random numbers.
        with torch.random.fork_rng(devices=[]):
            embedding = module.dense_class(1, module.embedding_dim, None, **options).to(weight.device)
        embedding.num_embeddings, embedding.padding_idx = module.num_embeddings, module.padding_idx
        embedding.weight = weight
        return embedding
    head = cast(ProjectiveLMHead | CodedLMHead, module)
    linear = nn.Linear(head.in_features, head.out_features, bias=False, device=torch.device("meta"))
    linear.weight = weight
    linear.register_parameter("bias", head.bias)
    return linear
