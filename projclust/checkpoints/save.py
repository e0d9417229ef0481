"""Writing a checkpoint: the model, what travels beside it, and the hash of both."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from projclust.checkpoints.load import Loaded
from projclust.checkpoints.source import CONFIG, TOKENIZER, is_side_file, leads_out
from projclust.checkpoints.tensors import weight_files
from projclust.errors import CheckpointError, OptionError


def bytes_to_save(loaded: Loaded, table: Tensor | None = None, dtype: torch.dtype | None = None) -> int:
    """The bytes of all tensors that `save_checkpoint` writes, without those of `table`, and tied ones once.

    They have their dtypes in memory, or floats have the `dtype` that `store_as` gives them.
    """
    state = {**loaded.model.state_dict(), **loaded.extra}
    tensors = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in state.values()}
    if table is not None:
        tensors.pop((table.data_ptr(), table.numel()), None)
    return sum(bytes_as(tensor, dtype) for tensor in tensors.values())


def bytes_as(tensor: Tensor, dtype: torch.dtype | None) -> int:
    """The bytes of a tensor, or of its floats in another dtype."""
    size = dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size()
    return tensor.numel() * size


def check_dtype(loaded: Loaded, table: Tensor, dtype: torch.dtype) -> None:
    """Refuse a dtype that makes infinity of a finite weight beside the table.

    Raises:
        OptionError: naming the weight.
    """
    for name, weight in {**loaded.model.state_dict(), **loaded.extra}.items():
        if weight.data_ptr() == table.data_ptr() or not weight.is_floating_point() or not weight.numel():
            continue
        largest = weight.abs().amax()
        if largest.isfinite() and not largest.to(dtype).isfinite():
            kind = str(dtype).removeprefix("torch.")
            raise OptionError(
                f"`dtype` {kind} cannot hold {name}, which has entries of {float(largest):.3g}: use bfloat16 or float32"
            )


def store_as(loaded: Loaded, dtype: torch.dtype) -> Loaded:
    """The checkpoint with its floats in another dtype, but for those of its embedding, whose form is its own."""
    own = {id(part) for part in loaded.model.get_input_embeddings().parameters()}
    for parameter in loaded.model.parameters():
        if id(parameter) not in own and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    stored = loaded.model.state_dict(keep_vars=True)
    for name, buffer in loaded.model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    extra = {name: value.to(dtype) if value.is_floating_point() else value for name, value in loaded.extra.items()}
    return replace(loaded, extra=extra)


def save_checkpoint(loaded: Loaded, folder: Path) -> None:
    """Write the model, and what the checkpoint held beside it."""
    state = {**loaded.model.state_dict(), **loaded.extra} if loaded.extra else None
    loaded.model.save_pretrained(folder, state_dict=state)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy tokenizer, processor, licence and sentence-transformers files; weights, configs and code stay behind.

    The tokenizer's JSON is written without its spaces, which are half of it where a vocabulary is a list of scores.
    """
    for path in side_files(source):
        destination = target / path.relative_to(source)
        destination.parent.mkdir(exist_ok=True)
        content = without_spaces(path) if destination == target / TOKENIZER else None
        if content is None:
            shutil.copyfile(path, destination)
        else:
            destination.write_bytes(content)


def without_spaces(path: Path) -> bytes | None:
    """The same JSON in as few bytes as it takes; None where it is none, or one that not every reader takes."""
    try:
        value = json.loads(path.read_bytes())
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # half a surrogate pair, which UTF-8 cannot hold, is a ValueError too
        return None


def side_files(source: Path) -> list[Path]:
    """What `copy_side_files` copies.

    Raises:
        CheckpointError: one of them leads out of the folder, and so would be published under this model's name, or may
            not be read.
    """
    paths = found_side_files(source)
    for path in paths:
        name = path.relative_to(source).as_posix()
        if leads_out(path, source):
            raise CheckpointError(f"{source} holds the link {name}, which leads out of it: put the file itself there")
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"cannot read {path}: Permission denied")
    return paths


def found_side_files(folder: Path) -> list[Path]:
    """The small files that travel with the weights of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if is_side_file(path.relative_to(folder).as_posix())]


def fingerprint(folder: Path) -> str:
    """SHA-256 over the content of what a model is made of: config, weights and the small files beside them.

    The model card and projclust's own reports are left out, so a card may be rewritten without making another model.
    """
    digest = hashlib.sha256()
    for path in [folder / CONFIG, *weight_files(folder), *found_side_files(folder)]:
        content = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
        digest.update(f"{path.relative_to(folder).as_posix()} {content.hexdigest()}\n".encode())
    return digest.hexdigest()
