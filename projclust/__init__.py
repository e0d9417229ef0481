"""projclust shrinks the embedding layer of Hugging Face models and proves what it costs.

Importing it makes ``transformers.AutoModel.from_pretrained`` read compressed checkpoints; everything else is loaded on
first use.
"""

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projclust._registration import register_with_transformers

# The one list of what `projclust` offers: type checkers follow these imports, and `_homes` reads them from this file.
if TYPE_CHECKING:
    from projclust.clustering import ProjectiveClustering as ProjectiveClustering
    from projclust.errors import CheckpointError as CheckpointError
    from projclust.errors import OptionError as OptionError
    from projclust.errors import ProjclustError as ProjclustError
    from projclust.errors import ServiceError as ServiceError
    from projclust.hf.compression import compress_model as compress_model
    from projclust.hf.compression import unfreeze as unfreeze
    from projclust.hf.config import ProjClustConfig as ProjClustConfig
    from projclust.recipes.recipe import Recipe as Recipe
    from projclust.tables import CodedEmbedding as CodedEmbedding
    from projclust.tables import CodedLMHead as CodedLMHead
    from projclust.tables import ProjectiveEmbedding as ProjectiveEmbedding
    from projclust.tables import ProjectiveLMHead as ProjectiveLMHead
    from projclust.weights.wordfreq import word_weights as word_weights

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """The module of each name in the list above."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOMES = _homes()
__all__ = sorted(_HOMES)

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __name__:
            raise
        # Installed without what it stands on, which is enough for loading checkpoints.
        message = f"projclust.{name} needs the package {error.name}: `pip install projclust` installs all that it needs"
        raise ModuleNotFoundError(message, name=error.name) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
