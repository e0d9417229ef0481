"""The tensors of a checkpoint, from the headers of its safetensors files alone."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from projclust.checkpoints.source import WEIGHTS, WEIGHTS_INDEX, check_readable, one_line, read_json
from projclust.errors import CheckpointError

_ITEM_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
# What safetensors calls the dtypes that weights are computed in.
FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a header describes it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors weights, or says that it does."""
    return any((folder / name).is_file() for name in _names(variant_of(folder)))


def variant_of(folder: Path) -> str | None:
    """The variant, such as fp16, that the names of a folder's weights have in them, where there are no others.

    Raises:
        CheckpointError: there are several variants, and nothing that says which is meant.
    """
    if any((folder / name).is_file() for name in _names(None)):
        return None
    names = [path.name for path in folder.glob("model.*")]
    found = {match.group(1) or match.group(2) for name in names if (match := _VARIANT.fullmatch(name))}
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds the variants {', '.join(sorted(found))}: keep the files of one")
    return next(iter(found), None)


_VARIANT = re.compile(r"model\.(\w+)(?:-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.(\w+)\.json")


def _names(variant: str | None) -> tuple[str, str]:
    """What the weights are called, and the list of their shards."""
    if variant is None:
        return WEIGHTS, WEIGHTS_INDEX
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or all its shards."""
    weights, index = (folder / name for name in _names(variant_of(folder)))
    if weights.is_file():
        return [weights]
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index} is damaged: it lists no shards")
        names = sorted(set(shards.values()))
        for name in names:
            if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
                raise CheckpointError(f"{index} names {name!r}, which is no file beside it")
        files = [folder / name for name in names]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing")
        return files
    other = sorted(path.name for path in folder.glob("*.bin"))
    hint = f" ({other[0]} is a pickle, which projclust does not read: convert it first)" if other else ""
    raise CheckpointError(f"{folder} holds no safetensors weights{hint}")


def read_headers(files: list[Path]) -> dict[str, StoredTensor]:
    """Every tensor of the files, by name."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        check_readable(file)  # which safetensors tells of as of a missing file
        try:
            with safe_open(file, framework="np") as opened:  # which imports no torch
                for name in opened.keys():  # noqa: SIM118, safe_open is no mapping
                    view = opened.get_slice(name)
                    shape, dtype = tuple(view.get_shape()), str(view.get_dtype())
                    tensors[name] = StoredTensor(shape, dtype, math.prod(shape) * _ITEM_SIZES.get(dtype, 1))
        except Exception as error:  # safetensors has an error class of its own, and mapping may fail as well
            raise CheckpointError(f"{file} is not a readable safetensors file: {one_line(error)}") from None
    return tensors


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by name."""
    return read_headers(weight_files(folder))


def embedding_tensors(tensors: dict[str, StoredTensor], name: str, tied: Sequence[str] = ()) -> dict[str, StoredTensor]:
    """The stored tensors of the input embedding, among all those of a checkpoint.

    A compressed one is known by the names of its tensors, for transformers renames the embeddings of a few models. A
    dense one is found by the name of its module, of which the checkpoint may have or lack a prefix, or else by those of
    modules that are tied to it: some checkpoints hold a tied table as the output layer's only.
    """
    for key in tensors:
        module, _, last = key.rpartition(".")
        if (last, f"{module}.clusters" in tensors, f"{module}.kinds" in tensors) in (
            ("bases", True, False),
            ("decoder_scales", False, True),
        ):
            return {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] == module}
    for own in (name, *tied):
        parts = own.split(".")
        for start in range(len(parts)):
            module = "." + ".".join(parts[start:])
            found = {key: tensor for key, tensor in tensors.items() if f".{key}".rpartition(".")[0].endswith(module)}
            # An output layer may have a bias, which is no part of the table.
            if found := {key: tensor for key, tensor in found.items() if own == name or key.endswith(".weight")}:
                return found
    return {}
