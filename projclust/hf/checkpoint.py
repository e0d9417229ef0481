"""Checkpoint folders: finding, reading and copying them. Only safetensors weights, never code from a checkpoint."""

import fnmatch
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from projclust.errors import CheckpointError, ProjclustError

from .headers import StoredTensor, read_headers

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

# Small files that travel with the weights: tokenizers, processors, generation settings, sentence-transformers modules.
_SIDE_FILES = (
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


def resolve_checkpoint(model: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloaded first when `model` is a Hub id.

    Raises:
        ProjclustError: there is no such folder or model, or the Hub cannot be reached.
    """
    if not model:
        raise ProjclustError("MODEL is empty: name a local folder or a model on the Hub")
    folder = local_folder(model)
    if folder is not None:
        if revision is not None:
            raise ProjclustError("--revision is for models on the Hub, but this is a local folder")
        if not (folder / CONFIG).is_file():
            raise ProjclustError(f"{model} holds no {CONFIG}: it is not a model folder")
        return folder
    if os.path.exists(model) or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ProjclustError(f"there is no model folder {model}")
    patterns = [CONFIG, "model*.safetensors", WEIGHTS_INDEX, "README.md", *_SIDE_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise ProjclustError(f"the model {model} has no revision {revision}") from None
    except GatedRepoError:
        raise ProjclustError(f"{model} is gated: accept its terms on the Hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ProjclustError(f"{model} is neither a local folder nor a model on the Hub that you can read") from None
    except LocalEntryNotFoundError:
        raise ProjclustError(
            f"{model} is no local folder, and the Hub cannot be reached to look for it there"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ProjclustError(f"downloading {model} failed: {one_line(error)}") from None


def local_folder(model: str) -> Path | None:
    """The folder that `model` names, or None for a Hub id."""
    try:
        return Path(model) if model and Path(model).is_dir() else None
    except OSError:  # a name too long to be a path
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: it is not there or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return content


def quantization_method(config: dict[str, Any]) -> str | None:
    """The quantization method that a config.json states: "projclust", another one's name, or None.

    Raises:
        CheckpointError: it states something else.
    """
    stated = config.get("quantization_config")
    if stated is None:
        return None
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if not isinstance(method, str):
        raise CheckpointError("damaged checkpoint: the quantization_config in config.json names no quant_method")
    return method


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint, read from the headers of its weight files.

    Raises:
        CheckpointError: there are no safetensors weights, or a header is damaged.
    """
    return read_headers(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or all its shards.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        shards = read_json(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{folder / WEIGHTS_INDEX} is damaged: it lists no shards")
        files = [folder / Path(name).name for name in sorted(set(shards.values()))]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing")
        return files
    other = sorted(path.name for path in folder.glob("*.bin"))
    hint = f" ({other[0]} is a pickle, which projclust does not read: convert it first)" if other else ""
    raise CheckpointError(f"{folder} holds no safetensors weights{hint}")


def embedding_tensors(tensors: dict[str, StoredTensor], name: str) -> dict[str, StoredTensor]:
    """The tensors of the input embedding: factors by their bases, a dense one by the module's name.

    The checkpoint may have or lack a prefix of `name`; transformers even renames the embeddings of a few models.
    """
    for key in tensors:
        module, _, last = key.rpartition(".")
        if (last, f"{module}.clusters" in tensors, f"{module}.kinds" in tensors) in (
            ("bases", True, False),
            ("decoder_scales", False, True),
        ):
            return {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] == module}
    parts = name.split(".")
    for start in range(len(parts)):
        prefix = ".".join(parts[start:]) + "."
        found = {key: tensor for key, tensor in tensors.items() if _under(key, prefix)}
        if found:
            return found
    return {}


def _under(key: str, prefix: str) -> bool:
    module = key.rpartition(".")[0] + "."
    return module == prefix or module.endswith("." + prefix)


def model_class(config: dict[str, Any]) -> type[PreTrainedModel]:
    """The transformers class that config.json names, so that heads are kept; AutoModel when it names none.

    Raises:
        ProjclustError: transformers has no such class.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return transformers.AutoModel
    found = getattr(transformers, str(names[0]), None) if re.fullmatch(r"\w+", str(names[0])) else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ProjclustError(f"transformers {transformers.__version__} has no model class {str(names[0])[:80]!r}")
    return found


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        model: in its own class and dtype.
        missing: parameters the checkpoint lacks, newly initialised.
        extra: tensors of the checkpoint that the class does not have, such as BERT's pooler beside a masked-LM head;
            `save_checkpoint` writes them again.
        lost: names of such tensors that transformers renamed in a way not followed here.
    """

    model: PreTrainedModel
    missing: list[str]
    extra: dict[str, Tensor]
    lost: list[str]


def load_checkpoint(folder: Path) -> Loaded:
    """Load a dense or compressed checkpoint, in the class that fits its tensors best.

    That is the one config.json names or, where that one leaves more tensors over or uninitialised, the model without a
    head: sentence encoders often name the class they were made from.

    Raises:
        CheckpointError: it is damaged, foreign or newer than this projclust; one sentence says which.
        ProjclustError: transformers does not know the model.
    """
    config = read_json(folder / CONFIG)
    files = weight_files(folder)
    read_headers(files)
    _refuse_pickled_modules(folder)
    kind = model_class(config)
    loaded = _load_as(kind, folder, files)
    if (loaded.missing or loaded.extra) and kind is not transformers.AutoModel:
        try:
            bare = _load_as(transformers.AutoModel, folder, files)
        except ProjclustError:  # not every model has a class without a head
            bare = loaded
        if len(bare.missing) + len(bare.extra) < len(loaded.missing) + len(loaded.extra):
            loaded = bare
    if loaded.missing and quantization_method(config) == "projclust":
        raise CheckpointError(f"{folder} is damaged: {loaded.missing[0]} is missing")
    return loaded


@dataclass(frozen=True)
class Classifier:
    """A checkpoint loaded as a sequence classifier, in float32.

    Attributes:
        model: the classifier.
        head_is_stored: whether the checkpoint holds a head for just these labels. Otherwise the head is newly
            initialised or, where it has as many labels of other names, only a place to start training from.
    """

    model: PreTrainedModel
    head_is_stored: bool


def load_classifier(folder: Path, labels: tuple[str, ...]) -> Classifier:
    """Load a dense or compressed checkpoint to classify (one or two) texts.

    Args:
        folder: the checkpoint.
        labels: names of the classes in the order of their numbers; none for regression.

    Raises:
        CheckpointError: it is damaged, foreign or newer than this projclust.
        ProjclustError: transformers has no classifier for this kind of model.
    """
    config = read_json(folder / CONFIG)
    read_headers(weight_files(folder))
    stored = config.get("id2label")
    generic = tuple(f"LABEL_{index}" for index in range(max(len(labels), 1)))
    # transformers leaves out the names of two labels without names.
    names = ("LABEL_0", "LABEL_1") if stored is None else _label_names(stored)
    try:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(generic),
            id2label=dict(enumerate(labels or generic)),
            label2id={name: index for index, name in enumerate(labels or generic)},
            problem_type="single_label_classification" if labels else "regression",
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for other labels is replaced
        )
    except ProjclustError:
        raise
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            kind = config.get("model_type")
            raise ProjclustError(f"transformers has no sequence classifier for models of type {kind}") from None
        raise CheckpointError(f"{folder} cannot be loaded as a classifier: {one_line(error)}") from error
    except Exception as error:  # a damaged config or header can make transformers raise nearly anything
        raise CheckpointError(f"{folder} cannot be loaded as a classifier: {one_line(error)}") from error
    body = f"{model.base_model_prefix}."
    mismatched = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    if damaged := sorted(name for name in mismatched if name.startswith(body)):
        raise CheckpointError(f"{folder} is damaged: {damaged[0]} has another shape than config.json asks for")
    # Encoders are often published without the pooler that a classifier reads; it is trained with the head.
    if lacking := sorted(name for name in info["missing_keys"] if name.startswith(body) and ".pooler." not in name):
        raise CheckpointError(f"{folder} holds no weights for {lacking[0]}")
    fresh = info["missing_keys"] or mismatched
    same = [name.casefold() for name in names] in ([name.casefold() for name in wanted] for wanted in (labels, generic))
    model.config.return_dict = True
    return Classifier(model, head_is_stored=not fresh and same)


def _label_names(id2label: Any) -> tuple[str, ...]:
    """The names in config.json in the order of their numbers; none where they are damaged."""
    try:
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    except (TypeError, ValueError, KeyError):
        return ()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: it has none, or a damaged one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        words = len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    except Exception as error:  # tokenizer files can be damaged in any way
        raise CheckpointError(f"{folder} has no tokenizer that loads: {one_line(error)}") from None
    if words < 2:  # without its files transformers makes one that knows special tokens only
        raise CheckpointError(f"{folder} has no tokenizer: its files are missing")
    return tokenizer


def _refuse_pickled_modules(folder: Path) -> None:
    """Refuse a sentence-transformers model one of whose own layers is not in safetensors, for it would be lost."""
    for path in sorted(folder.glob("[0-9]_*/config.json")):
        if "in_features" in read_json(path) and not (path.parent / WEIGHTS).is_file():
            raise CheckpointError(f"the module {path.parent.name} has no safetensors weights: convert it first")


def _load_as(kind: type[PreTrainedModel], folder: Path, files: list[Path]) -> Loaded:
    try:
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the message below can name the tensor
        )
    except ProjclustError:
        raise
    except Exception as error:  # a damaged config or header can make transformers raise nearly anything
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__}: {one_line(error)}") from error
    if info["mismatched_keys"]:
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
        raise CheckpointError(f"{folder} is damaged: {names[0]} has another shape than config.json asks for")
    unexpected, extra = set(info["unexpected_keys"]), {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, safe_open is no mapping
                # The old names of a layer norm's parameters, which transformers replaces while loading.
                current = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
                if current in unexpected or name in unexpected:
                    extra[current] = tensors.get_tensor(name)
    lost = sorted(unexpected - set(extra))
    return Loaded(model, sorted(info["missing_keys"]), dict(sorted(extra.items())), lost)


def bytes_to_save(loaded: Loaded) -> int:
    """Bytes of all tensors `save_checkpoint` writes in the dtypes they have in memory, tied ones once."""
    state = {**loaded.model.state_dict(), **loaded.extra}
    tensors = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in state.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def save_checkpoint(loaded: Loaded, folder: Path) -> None:
    """Write the model, and what the checkpoint held beside it."""
    state = {**loaded.model.state_dict(), **loaded.extra} if loaded.extra else None
    loaded.model.save_pretrained(folder, state_dict=state)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy tokenizer, processor, licence and sentence-transformers files; weights, configs and code stay behind."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and is_side_file(name):
            destination = target / name
            destination.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, destination)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the content of what a model is made of: config, weights and the small files beside them.

    The model card and projclust's own reports are left out, so a card may be rewritten without making another model.

    Raises:
        CheckpointError: there are no safetensors weights.
    """
    side_files = [path for path in folder.rglob("*") if path.is_file()]
    side_files = [path for path in side_files if is_side_file(path.relative_to(folder).as_posix())]
    digest = hashlib.sha256()
    for path in [folder / CONFIG, *weight_files(folder), *sorted(side_files)]:
        content = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
        digest.update(f"{path.relative_to(folder).as_posix()} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


def is_side_file(name: str) -> bool:
    """Whether a file, by its path inside a checkpoint, travels with the weights."""
    return any(name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern) for pattern in _SIDE_FILES)


def one_line(error: Exception) -> str:
    """The beginning of an error's message, without line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__
