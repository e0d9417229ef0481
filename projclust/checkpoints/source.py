"""Where a checkpoint is, and what its config.json says; imports neither torch nor transformers."""

import errno
import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from projclust.errors import CheckpointError, ProjclustError, ServiceError, is_out_of_reach
from projclust.onnx_export.needs import GRAPHS, Body

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
# The modules of a sentence-transformers model, and the class of one that is a table and nothing else.
MODULES, STATIC = "modules.json", "StaticEmbedding"
# What config.json says of such a model as transformers loads it, see checkpoints/static.py.
STATIC_MARK = "static_embedding"
# What `projclust compress` says of the folder it wrote.
REPORT_FILE = "projclust_report.json"

_TOKENIZER_FILES = (
    "tokenizer*.json",
    "*vocab*.json",
    "*vocab*.txt",
    "*merges.txt",
    "*tokens*.json",
    "*.model",
    "*.spm",
    "*.jinja",
    "normalizer.json",
    "word_*.json",
    "bpe.codes",
)

# The small files that travel with the weights: tokenizers, processors, generation settings, sentence-transformers
# modules.
_SIDE_FILES = (
    *_TOKENIZER_FILES,
    "generation_config.json",
    "*preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_*config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
    "LICENSE*",
    "NOTICE*",
)


def resolve_checkpoint(model: str, revision: str | None = None, graphs: bool = False) -> Path:
    """The local folder of a checkpoint, downloaded first when `model` is a Hub id; with its ONNX files where asked."""
    if not model:
        raise ProjclustError("MODEL is empty: name a local folder or a model on the Hub")
    check_name(model)
    folder = local_folder(model)
    if folder is not None:
        if revision is not None:
            raise ProjclustError("--revision is for models on the Hub, but this is a local folder")
        check_readable(folder)
        if not (folder / CONFIG).is_file() and static_part(folder) is None:
            raise ProjclustError(f"{model} holds no {CONFIG}: {_parts_of(folder)}")
        return folder
    check_readable(Path(model))  # or what it lies in
    if os.path.exists(model) or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ProjclustError(f"there is no model folder {model}")
    patterns = [
        CONFIG,
        "model*.safetensors",
        "model.safetensors.index*.json",
        "README.md",
        *_SIDE_FILES,
    ]
    patterns += [f"{GRAPHS}/{body.file}" for body in Body if graphs] + [f"0_{STATIC}/{TOKENIZER}"]
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise ProjclustError(f"the model {model} has no revision {revision}") from None
    except GatedRepoError:
        raise ProjclustError(f"{model} is gated: accept its terms on the Hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ProjclustError(f"{model} is neither a local folder nor a model on the Hub that you can read") from None
    except LocalEntryNotFoundError as error:
        kind = ServiceError if is_out_of_reach(error) else ProjclustError
        raise kind(f"{model} is no local folder, and the Hub cannot be reached to look for it there") from None
    except (HfHubHTTPError, OSError) as error:
        kind = ServiceError if isinstance(error, HfHubHTTPError) or is_out_of_reach(error) else ProjclustError
        raise kind(f"downloading {model} failed: {one_line(error)}") from None


def _parts_of(folder: Path) -> str:
    """What to do with a folder that has no config.json: a Router of sentence-transformers has one for each part."""
    if not (folder / MODULES).is_file():
        return "it is not a model folder"
    parts = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}")) if "model_type" in read_json(path)]
    if not parts:
        return "it is a sentence-transformers model without a transformer"
    names = ", ".join(part.name for part in parts)
    return f"its transformers are in folders of their own ({names}): give one, and put the result in its place"


def is_static(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a table and nothing else, as transformers loads it."""
    return config.get(STATIC_MARK) is True


def static_part(folder: Path) -> Path | None:
    """Where the weights lie of a model that is a table and nothing else; None of any other model.

    sentence-transformers has such models (StaticEmbedding), and model2vec, whose config.json names no model_type.
    """
    try:
        modules = json.loads((folder / MODULES).read_bytes())
        if str(modules[0]["type"]).rpartition(".")[2] != STATIC:
            return None
        part = folder / str(modules[0]["path"])
        return part if part in (folder, folder / f"0_{STATIC}") else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        kind = config.get("model_type", "model2vec" if "embedding_dtype" in config else None)
        return folder if kind == "model2vec" else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def local_folder(model: str) -> Path | None:
    """The folder that `model` names, or None for a Hub id."""
    try:
        return Path(model) if model and Path(model).is_dir() else None
    except OSError:  # a name too long to be a path
        return None


def check_readable(path: Path) -> None:
    """Refuse a file, or a folder and what lies in it, that may not be read; what is not there is none of it."""
    try:
        if path.is_dir():
            os.listdir(path)
            os.stat(path / CONFIG)
        else:
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
            raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror}") from None


def check_name(path: str | Path) -> None:
    """Refuse what no file can be called, and what cannot be written down.

    Raises:
        ProjclustError: it has a NUL character or is not UTF-8.
    """
    try:
        fine = "\0" not in str(path) and bool(str(path).encode())
    except UnicodeEncodeError:  # the bytes of a name that is not UTF-8 stand in a text as lone surrogates
        fine = False
    if not fine and str(path):
        raise ProjclustError(f"the name {str(path)!r} is not UTF-8 text: choose another")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return content


def quantization_method(config: dict[str, Any]) -> str | None:
    """The quantization method that a config.json states: "projclust", another one's name, or None."""
    stated = config.get("quantization_config")
    parts = [name for name, part in config.items() if isinstance(part, dict) and "quantization_config" in part]
    if parts:
        raise ProjclustError(
            f"parts of this model were compressed by themselves ({', '.join(parts)}): transformers loads it, but a "
            "command takes the folders that its parts came from"
        )
    if stated is None:
        return None
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if not isinstance(method, str):
        raise CheckpointError("damaged checkpoint: the quantization_config in config.json names no quant_method")
    return method


def is_side_file(name: str) -> bool:
    """Whether a file, by its path inside a checkpoint, travels with the weights."""
    return any(name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern) for pattern in _SIDE_FILES)


def is_tokenizer_file(name: str) -> bool:
    """Whether a side file is one of the tokenizer's."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TOKENIZER_FILES)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is, by links, outside of it; the Hub's cache keeps what its folders link to nearby."""
    root, real = folder.resolve(), path.resolve()
    cached = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    return not (real.is_relative_to(root) or real.is_relative_to(cached))


def one_line(error: Exception) -> str:
    """The beginning of an error's message, without line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__
