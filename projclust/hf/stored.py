"""What a compressed checkpoint states, holds and gives: the three must agree."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.checkpoints.tensors import FLOATS, StoredTensor, embedding_tensors, read_headers
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.private import is_dispatched, was_read
from projclust.hf.swap import input_embedding, tied_names
from projclust.shapes import CodedShape, FactoredShape
from projclust.tables import CodedTable, FactorizedTable

# At load only tables of at most so many bytes are hashed, which takes a hundredth of a second or two.
_HASHED_AT_LOAD = 16 * 2**20


def check_stored_tensors(stored: dict[str, StoredTensor], shape: FactoredShape | CodedShape) -> None:
    """Compare the tensors of the safetensors headers with those config.json states: names, dtypes and shapes.

    What is missing shows after the load; names are no help before it, since transformers renames some on their way.
    """
    dtypes = stored_dtypes(shape)
    for prefix in _prefixes(stored, shape):
        # A head that was saved untied has factors too, and a bias beside them, but no ids.
        is_primary = isinstance(shape, CodedShape) or f"{prefix}clusters" in stored
        for key in stored if is_primary else ():
            if key.rpartition(".")[0] == prefix.removesuffix(".") and key.removeprefix(prefix) not in dtypes:
                raise CheckpointError(f"damaged checkpoint: config.json says nothing of {key}")
        for name, known in dtypes.items():
            found = stored.get(prefix + name)
            wanted = (shape.added, shape.d) if name == "added" else shape.stored[name]
            if found is not None and found.shape != wanted:
                raise CheckpointError(
                    f"damaged checkpoint: {prefix}{name} has shape {list(found.shape)}, expected {list(wanted)}"
                )
            if found is not None and found.dtype not in known:
                raise CheckpointError(
                    f"damaged checkpoint: {prefix}{name} has dtype {found.dtype}, expected {' or '.join(known)}"
                )


def is_dense(stored: dict[str, StoredTensor], shape: FactoredShape | CodedShape, model: PreTrainedModel) -> bool:
    """Whether a checkpoint holds a dense table where its config.json tells of one of this shape."""
    if _prefixes(stored, shape):
        return False
    found = embedding_tensors(stored, input_embedding(model)[0], tied_names(model))
    return any(tensor.shape == (shape.height, shape.d) and tensor.dtype in FLOATS for tensor in found.values())


def stored_dtypes(shape: FactoredShape | CodedShape) -> dict[str, tuple[str, ...]]:
    """The dtypes, as safetensors calls them, that each stored tensor of a table may have."""
    added = {"added": FLOATS} if shape.added else {}
    if isinstance(shape, CodedShape):
        return {**dict.fromkeys(shape.stored, ("U8",)), **added}
    factors = ("weight", "bases", "means") if shape.affine else ("weight", "bases")
    return {**dict.fromkeys(factors, FLOATS), "clusters": ("U8",) if shape.k <= 256 else ("I32",), **added}


def _prefixes(stored: dict[str, Any], shape: FactoredShape | CodedShape) -> list[str]:
    """What stands before the names of a table's tensors, for each table of this kind."""
    mark = "decoder_scales" if isinstance(shape, CodedShape) else "bases"
    return [key.removesuffix(mark) for key in stored if key == mark or key.endswith(f".{mark}")]


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the stored tensors of a table by their last names; see docs/format.md."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {str(tensor.dtype).removeprefix('torch.')}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_digest(files: list[Path], sha256: Any, shape: FactoredShape | CodedShape, at_load: bool = False) -> None:
    """Refuse stored tensors whose bytes are not those that were saved; `sha256` is None where config.json has none."""
    if sha256 is None:
        return
    stored = read_headers(files)
    for prefix in _prefixes(stored, shape):
        own = {prefix + name: name for name in stored_dtypes(shape)}
        known = [stored[key].bytes for key in own if key in stored]
        # That one is missing is said elsewhere.
        if len(known) < len(own) or (at_load and sum(known) > _HASHED_AT_LOAD):
            continue
        tensors: dict[str, Tensor] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                tensors |= {own[key]: opened.get_tensor(key) for key in own.keys() & set(opened.keys())}
        if digest(tensors) != sha256:
            raise CheckpointError(
                f"damaged checkpoint: the tensors {prefix}* are not those that were saved (their SHA-256 is another): "
                "get the files again"
            )


def check_loaded_tables(model: nn.Module) -> None:
    """Check that every stored tensor of the model's compressed tables was read, and holds what it may."""
    for module in model.modules():
        if isinstance(module, FactorizedTable) and not is_dispatched(module):
            _check_factors(module)
        elif isinstance(module, CodedTable) and module.primary is module:
            _check_codes(module)


def _check_factors(table: FactorizedTable) -> None:
    own = ["clusters", *(["added"] if table.added is not None else [])] if table.primary is table else []
    for name in [*table.factor_names(), *own]:
        tensor = getattr(table, name)
        if table.primary is not table and tensor is getattr(table.primary, name):
            continue  # tied: checked there
        if not was_read(tensor):
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} is missing")
        if tensor.is_meta:
            continue
        if name == "clusters":
            if int(tensor.max()) >= table.n_clusters or int(tensor.min()) < 0:
                raise CheckpointError(f"damaged checkpoint: a cluster id lies outside 0 .. {table.n_clusters - 1}")
            sizes = torch.bincount(tensor.long(), minlength=table.n_clusters).tolist()
            if table.cluster_sizes not in (None, sizes):
                raise CheckpointError("damaged checkpoint: the clusters have other sizes than config.json states")
        elif not torch.isfinite(tensor).all():
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} has NaN or infinite entries")


def _check_codes(table: CodedTable) -> None:
    # The attribute of this name may be what stands in for a dense weight.
    tensors = {**dict(table.named_buffers(recurse=False)), **dict(table.named_parameters(recurse=False))}
    for name in stored_dtypes(table.shape):
        if not (was_read(tensors[name]) or is_dispatched(table)):
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} is missing")
    if table.added is not None and not (table.added.is_meta or torch.isfinite(table.added).all()):
        raise CheckpointError("damaged checkpoint: the embedding's added has NaN or infinite entries")
    try:
        table.prepare()
    except ProjclustError as error:
        raise CheckpointError(f"damaged checkpoint: {error}") from None
