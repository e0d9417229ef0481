"""Loading models and tokenizers from checkpoint folders: only safetensors weights, never code from a checkpoint."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from projclust.checkpoints.source import CONFIG, WEIGHTS, one_line, quantization_method, read_json
from projclust.checkpoints.tensors import read_headers, variant_of, weight_files
from projclust.errors import CheckpointError, ProjclustError


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory: the model, and the parameters that are newly initialised, for the checkpoint lacks them.

    `extra` are its tensors that the class does not have, such as BERT's pooler beside a masked-LM head;
    `save_checkpoint` writes them again. `lost` are such tensors that transformers renamed in a way not followed here.
    """

    model: PreTrainedModel
    missing: list[str] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def load_checkpoint(folder: Path) -> Loaded:
    """Load a dense or compressed checkpoint, in the class that fits its tensors best.

    That is the one config.json names or, where that one leaves more tensors over or uninitialised, the model without a
    head: sentence encoders often name the class they were made from.
    """
    config = read_json(folder / CONFIG)
    files = weight_files(folder)
    tensors = read_headers(files)
    check_layers(config, len(tensors), folder)
    for name in tensors:
        try:
            re.compile(name)  # as transformers does with names when it saves
        except re.error:
            raise CheckpointError(f"{folder} holds a tensor named {name!r}, which transformers cannot save") from None
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


def _load_as(kind: type[PreTrainedModel], folder: Path, files: list[Path]) -> Loaded:
    model, info = from_pretrained(kind, kind.__name__, folder)
    if info["mismatched_keys"]:
        raise CheckpointError(f"{folder} is damaged: {mismatched(info)[0]} has another shape than config.json asks for")
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


def from_pretrained(kind: Any, what: str, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model, and what transformers tells of the load: also of tensors that have another shape."""
    try:
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            variant=variant_of(folder),
            **options,
        )
    except ProjclustError:
        raise
    except Exception as error:  # a damaged config or header can make transformers raise nearly anything
        raise CheckpointError(f"{folder} cannot be loaded as {what}: {one_line(error)}") from error
    return model, info


def mismatched(info: dict[str, Any]) -> list[str]:
    """The names of the tensors whose shape is not the model's."""
    return sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])


def _refuse_pickled_modules(folder: Path) -> None:
    """Refuse a sentence-transformers model one of whose own layers is not in safetensors, for it would be lost."""
    for path in sorted(folder.glob("[0-9]_*/config.json")):
        if "in_features" in read_json(path) and not (path.parent / WEIGHTS).is_file():
            raise CheckpointError(f"the module {path.parent.name} has no safetensors weights: convert it first")


# Layers may share their tensors, but not by the thousand.
_SHARED_LAYERS = 1000


def check_layers(config: dict[str, Any], tensors: int, folder: Path) -> None:
    """Refuse a config.json that asks for far more layers than so many stored tensors can be of.

    Only the number of modules makes a model without weights slow to build: a million of layers takes hours.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_layers(value, tensors, folder)
        is_count = type(value) is int and re.search("layer|expert|block|stage|group", name)
        if is_count and value > _SHARED_LAYERS + tensors and not name.endswith(("_id", "_size", "_dim")):
            raise CheckpointError(
                f"{folder / CONFIG} is damaged: {name} is {value:,}, and only {tensors:,} tensors are stored"
            )


def model_class(config: dict[str, Any]) -> type[PreTrainedModel]:
    """The transformers class that config.json names, so that heads are kept; AutoModel when it names none."""
    known, kind = transformers.CONFIG_MAPPING, config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        what = "names no model_type" if kind is None else f"names the model_type {str(kind)[:80]!r}, which is none"
        raise ProjclustError(f"{CONFIG} {what} of transformers {transformers.__version__}: it cannot be loaded")
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return transformers.AutoModel
    name = str(names[0])
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ProjclustError(f"transformers {transformers.__version__} has no model class {name[:80]!r}")
    return found


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, which must have one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        words = len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    except Exception as error:  # tokenizer files can be damaged in any way
        raise CheckpointError(f"{folder} has no tokenizer that loads: {one_line(error)}") from None
    if words < 2:  # without its files transformers makes one that knows special tokens only
        raise CheckpointError(f"{folder} has no tokenizer: its files are missing")
    return tokenizer
