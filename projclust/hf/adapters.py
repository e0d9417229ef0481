"""What peft does to compressed layers: it trains copies of them, LoRA and rows of single tokens beside them.

peft knows layers by their classes and reads their dense weights. Where it meets a compressed one it would train
nothing, or fail in words that lead nowhere. So a few of its methods look at the layer first, and say in one line what
cannot be.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel

from projclust.errors import ProjclustError
from projclust.tables import CodedLMHead, CodedTable, CompressedTable
from projclust.tables.head import TiedHead
from projclust.tables.lookup import EmbeddingLookup

_PEFT, _LAYERS = "peft.peft_model", "projclust.hf.adapter_layers"
# What `init_lora_weights` may say where there is no dense weight to look at.
_STARTS = ("gaussian", "orthogonal")


def heed_adapters() -> None:
    """Look at what peft does, now or as soon as it is imported; a second call changes nothing."""
    if _PEFT in sys.modules and not getattr(sys.modules[_PEFT].__spec__, "_initializing", False):
        _look()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _look() -> None:
    peft, utils, other = map(importlib.import_module, ("peft", "peft.utils", "peft.utils.other"))
    tuners, lora = map(importlib.import_module, ("peft.tuners.tuners_utils", "peft.tuners.lora.model"))
    tokens = importlib.import_module("peft.tuners.trainable_tokens")
    _wrap(other.ModulesToSaveWrapper, "update", _update)
    _wrap(lora.LoraModel, "_create_and_replace", _adapt)
    _wrap(tokens.TrainableTokensLayer, "__init__", _of_tokens)
    _wrap(tuners.BaseTuner, "_check_merge_allowed", _may_merge)
    _wrap(tuners.BaseTuner, "_replace_module", _put)
    _wrap(sys.modules[_PEFT].PeftModel, "_setup_prompt_encoder", _set_up_prompt)
    # Functions, wherever peft keeps them by now.
    for module in (tuners, other):
        _wrap(module, "_get_module_names_tied_with_embedding", _tied_with_embedding)
    for module in (other, utils, peft):
        _wrap(module, "prepare_model_for_kbit_training", _prepare)


def _wrap(holder: Any, name: str, own: Callable[..., Any]) -> None:
    """Let `own(stock, ...)` take the place of a method or function, once."""
    stock = getattr(holder, name, None)
    if stock is not None and not hasattr(stock, "__wrapped__"):

        @wraps(stock)
        def call(*arguments: Any, **more: Any) -> Any:
            return own(stock, *arguments, **more)

        setattr(holder, name, call)


def _update(stock: Any, self: Any, adapter_name: str, tied_module: Any = None, **more: Any) -> None:
    """modules_to_save: a copy of a coded embedding is one that learns."""
    if isinstance(self.original_module, CodedLMHead):
        raise ProjclustError(
            "a coded output layer holds nothing that modules_to_save could train: name the embedding there, or call "
            "model.dequantize() first"
        )
    if isinstance(tied_module, CompressedTable):
        raise ProjclustError(
            "ensure_weight_tying needs a dense embedding: name either it or the output layer in modules_to_save, or "
            "call model.dequantize() first"
        )
    more |= {} if tied_module is None else {"tied_module": tied_module}
    stock(self, adapter_name, **more)
    copy = self.modules_to_save[adapter_name]
    if isinstance(copy, CodedTable):
        copy.requires_grad_(True)
        copy.requires_grad_(adapter_name == self.active_adapter)


def _adapt(stock: Any, self: Any, config: Any, adapter_name: str, target: Any, *others: Any, **more: Any) -> None:
    """LoRA."""
    table = getattr(target, "base_layer", target)
    if isinstance(table, CompressedTable):
        variants = {"use_dora", *(field.name for field in fields(config) if field.metadata.get("is_lora_variant"))}
        is_plain = config.init_lora_weights in (True, False, *_STARTS) and not any(getattr(config, v) for v in variants)
        if not is_plain or more.get("parameter_name") is not None:
            raise ProjclustError(
                "only plain LoRA adapts a compressed embedding or its output layer, which have no dense weight: name "
                "them in target_modules, without use_dora and the like, with init_lora_weights True, False, "
                f"{' or '.join(map(repr, _STARTS))}, or call model.dequantize() first"
            )
        table.primary.requires_grad_(False)
        layers = importlib.import_module(_LAYERS)
        config._register_custom_module({EmbeddingLookup: layers.EmbeddingLora, TiedHead: layers.HeadLora})
    stock(self, config, adapter_name, target, *others, **more)


def _of_tokens(stock: Any, self: Any, base_layer: Any, *arguments: Any, **more: Any) -> None:
    """trainable_token_indices: the layer becomes one that knows tables, for peft makes them in several places."""
    table = getattr(base_layer, "base_layer", base_layer)  # of LoRA, on which peft refuses it
    with warnings.catch_warnings():
        if isinstance(table, CompressedTable):
            self.__class__ = importlib.import_module(_LAYERS).TokenRows
            table.primary.requires_grad_(False)
            warnings.filterwarnings("ignore", "Unsupported layer type")
        stock(self, base_layer, *arguments, **more)


def _may_merge(stock: Any, self: Any) -> None:
    if any(isinstance(getattr(module, "base_layer", None), CompressedTable) for module in self.model.modules()):
        raise ProjclustError(
            "what an adapter learned on a compressed embedding or output layer cannot be merged into it: save the "
            "adapter, load it onto the model after dequantize(), and merge it there"
        )
    stock(self)


def _put(stock: Any, self: Any, parent: Any, name: str, new: Any, *others: Any) -> None:
    """A layer that is taken off gives the one below its weight, which of a coded output layer must not stay."""
    stock(self, parent, name, new, *others)
    if isinstance(new, CodedTable):
        vars(new).pop("weight", None)


def _tied_with_embedding(stock: Any, model: Any) -> Any:
    """The names of what reads the embedding's table: peft looks for its parameters, and a coded one has none."""
    base = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), model)
    tables = {name: part for name, part in base.named_modules() if isinstance(part, CompressedTable)}
    own = set(base.get_input_embeddings().modules()).intersection(tables.values()) if tables else set()
    primaries = {table.primary for table in own}
    tied = sorted(name for name, table in tables.items() if table.primary in primaries and table not in own)
    return tied if own else stock(model)


def _prepare(stock: Any, model: Any, *arguments: Any, **more: Any) -> Any:
    """prepare_model_for_kbit_training makes parameters float32; what is decoded goes with them."""
    prepared = stock(model, *arguments, **more)
    for module in prepared.modules():
        if isinstance(module, CodedTable):
            module.float()
    return prepared


def _set_up_prompt(stock: Any, self: Any, adapter_name: str) -> Any:
    """Prompt tuning, which looks for a parameter with a row for each token."""
    base = self.base_model
    table = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    if not isinstance(table, CompressedTable):
        return stock(self, adapter_name)
    find = base.get_submodule
    # Where peft looks first.
    base.get_submodule = lambda name: table if name == "embeddings.word_embeddings" else find(name)
    try:
        return stock(self, adapter_name)
    finally:
        del base.get_submodule


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders locate peft's models, and adds a look to their loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _PEFT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _LookingLoader(spec.loader)
        return spec


class _LookingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _look()
