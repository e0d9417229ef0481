"""What peft may do to compressed layers: it trains copies of them, and is told in one line what it cannot do.

peft knows layers by their classes and reads their dense weights. Where it meets a compressed one it would train
nothing, or fail in words that lead nowhere. So a few of its methods look at the layer first.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any

from projclust.errors import ProjclustError
from projclust.tables import CodedLMHead, CodedTable, CompressedTable

_PEFT = "peft.peft_model"


def heed_adapters() -> None:
    """Look at what peft does, now or as soon as it is imported; a second call changes nothing."""
    if _PEFT in sys.modules and not getattr(sys.modules[_PEFT].__spec__, "_initializing", False):
        _look()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _look() -> None:
    other, tokens = importlib.import_module("peft.utils.other"), importlib.import_module("peft.tuners.trainable_tokens")
    lora, models = importlib.import_module("peft.tuners.lora.model"), sys.modules[_PEFT]
    _wrap(other.ModulesToSaveWrapper, "update", _update)
    _wrap(tokens.TrainableTokensLayer, "__init__", _of_tokens)
    _wrap(models.PeftModel, "_setup_prompt_encoder", _set_up_prompt)
    if not hasattr(lora.LoraModel._create_new_module, "__wrapped__"):
        stock = lora.LoraModel._create_new_module

        @wraps(stock)
        def create(config: Any, adapter_name: str, target: Any, *others: Any, **more: Any) -> Any:
            if isinstance(target, CompressedTable):
                raise ProjclustError(
                    "LoRA adapts a dense weight, and a compressed embedding and its tied output layer have none: leave "
                    "them out of target_modules, or call model.dequantize() first"
                )
            return stock(config, adapter_name, target, *others, **more)

        lora.LoraModel._create_new_module = staticmethod(create)


def _wrap(kind: Any, name: str, own: Callable[..., Any]) -> None:
    """Let `own(stock, self, ...)` take the place of a method, once."""
    stock = getattr(kind, name)
    if not hasattr(stock, "__wrapped__"):

        @wraps(stock)
        def method(self: Any, *arguments: Any, **more: Any) -> Any:
            return own(stock, self, *arguments, **more)

        setattr(kind, name, method)


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


def _of_tokens(stock: Any, self: Any, base_layer: Any, *arguments: Any, **more: Any) -> None:
    """trainable_token_indices."""
    if isinstance(base_layer, CompressedTable):
        raise ProjclustError(
            "trainable_token_indices replaces rows of a dense embedding: give new tokens rows by "
            "resize_token_embeddings, which train, or call model.dequantize() first"
        )
    stock(self, base_layer, *arguments, **more)


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
