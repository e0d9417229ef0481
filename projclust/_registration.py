"""Telling transformers of the quantizer without importing it.

``import projclust`` must make ``AutoModel.from_pretrained`` read compressed checkpoints, but importing transformers and
torch takes seconds, which `projclust --help` should not. So the quantizer is registered at once when transformers'
table of quantizers is loaded already, and else right after something loads it.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TABLE = "transformers.quantizers.auto"


def register_with_transformers() -> None:
    """Register now or as soon as transformers' table of quantizers is imported."""
    if _TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())


def _register() -> None:
    # It registers as it is imported; where its own import is what loads the table, when that goes on.
    importlib.import_module("projclust.hf.quantizer")


class _TableFinder(importlib.abc.MetaPathFinder):
    """Lets the other finders locate the table, and adds the registration to its loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TABLE:
            return None
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
        self._loader.exec_module(module)
        _register()
