"""Telling transformers of the quantizer without importing it.

``import projclust`` must make ``AutoModel.from_pretrained`` read compressed checkpoints, but importing transformers and
torch takes seconds, which `projclust --help` should not. So the quantizer is registered at once when transformers'
package of quantizers is loaded already, and else right after something loads it. What loads it first is mostly the
module of models, which the quantizer needs: then the registration waits for that one to be whole.

Programs that never import projclust (`transformers serve`, lm-eval, mteb) load models all the same: torch, at the end
of its own import, calls what installed packages have declared as entry points of its group "torch.backends", and
projclust declares `register_with_transformers` there. TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns that off.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TORCH, _QUANTIZERS, _MODELS = "torch", "transformers.quantizers", "transformers.modeling_utils"


def register_with_transformers() -> None:
    """Register now or as soon as transformers' quantizers are imported."""
    if _is_ready():
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        for name in (_QUANTIZERS, _MODELS):
            if _is_half(name):  # it imports torch, which calls this: no finder is asked for it again
                _WatchedSpec.of(sys.modules[name]).finder = finder


def _register() -> None:
    importlib.import_module("projclust.hf.quantizer")  # registers as it is imported


def _is_ready(loaded: str | None = None) -> bool:
    """Whether the quantizers are imported and nothing that ours needs is half so; `loaded` is whole by now."""
    half = [name for name in (_TORCH, _QUANTIZERS, _MODELS) if name != loaded and _is_half(name)]
    return _QUANTIZERS in sys.modules and not half


def _is_half(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders locate the two modules and those of models, and adds the registration to their loading.

    A model's own module is the last occasion: what is imported first may import torch, and by it this one, when it is
    half loaded itself.
    """

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        is_model = fullname.startswith("transformers.models.") and ".modeling_" in fullname
        if not (is_model or fullname in (_QUANTIZERS, _MODELS)) or fullname in self._asked:
            return None
        self._asked.add(fullname)  # the other finders are asked by a call that comes here again
        spec = importlib.util.find_spec(fullname)
        self._asked.remove(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec

    def heed(self, loaded: str) -> None:
        """Register, if that was the last thing to wait for."""
        if self in sys.meta_path and _is_ready(loaded):
            sys.meta_path.remove(self)
            _register()


class _WatchedSpec(importlib.machinery.ModuleSpec):
    """That of a module that is being loaded already, told by the import system when it is whole."""

    finder: _Finder

    @classmethod
    def of(cls, module: ModuleType) -> "_WatchedSpec":
        spec = module.__spec__
        assert spec is not None
        spec.__class__ = cls
        assert isinstance(spec, cls)
        return spec

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            self.finder.heed(self.name)


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._finder.heed(module.__name__)
