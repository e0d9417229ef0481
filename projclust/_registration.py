"""Telling transformers of the quantizer without importing it.

``import projclust`` must make ``AutoModel.from_pretrained`` read compressed checkpoints, but importing transformers and
torch takes seconds, which `projclust --help` should not. So the quantizer is registered at once when transformers'
package of quantizers is loaded already, and else right after something loads it. What loads it first is mostly the
module of models, which the quantizer needs: then the registration waits for that one to be whole.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_QUANTIZERS, _MODELS = "transformers.quantizers", "transformers.modeling_utils"


def register_with_transformers() -> None:
    """Register now or as soon as transformers' quantizers are imported."""
    if _QUANTIZERS in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    importlib.import_module("projclust.hf.quantizer")  # registers as it is imported


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders locate the two modules, and adds the registration to their loading."""

    def __init__(self) -> None:
        self._awaited = {_QUANTIZERS, _MODELS}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._awaited:
            return None
        self._awaited.remove(fullname)
        if not self._awaited:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        models_are_loading = _MODELS in sys.modules
        self._loader.exec_module(module)
        if module.__name__ == _MODELS or not models_are_loading:
            _register()
