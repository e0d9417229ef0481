"""projclust shrinks the embedding layer of Hugging Face models and proves what it costs.

Importing it makes ``transformers.AutoModel.from_pretrained`` read compressed checkpoints; everything else is loaded on
first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._registration import register_with_transformers

if TYPE_CHECKING:
    from .clustering import ProjectiveClustering
    from .errors import CheckpointError, ProjclustError
    from .hf.compress import compress_model, unfreeze
    from .hf.config import ProjClustConfig
    from .modules import CodedEmbedding, CodedLMHead, ProjectiveEmbedding, ProjectiveLMHead
    from .weights import word_weights

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "CodedEmbedding": "modules",
    "CodedLMHead": "modules",
    "ProjClustConfig": "hf.config",
    "ProjclustError": "errors",
    "ProjectiveClustering": "clustering",
    "ProjectiveEmbedding": "modules",
    "ProjectiveLMHead": "modules",
    "compress_model": "hf.compress",
    "unfreeze": "hf.compress",
    "word_weights": "weights",
}
__all__ = [
    "CheckpointError",
    "CodedEmbedding",
    "CodedLMHead",
    "ProjClustConfig",
    "ProjclustError",
    "ProjectiveClustering",
    "ProjectiveEmbedding",
    "ProjectiveLMHead",
    "compress_model",
    "unfreeze",
    "word_weights",
]

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
