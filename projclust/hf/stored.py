"""What a compressed checkpoint states, holds and gives: the three must agree."""

from pathlib import Path

import torch
from torch import nn

from projclust.checkpoints.tensors import read_headers
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.private import is_dispatched, was_read
from projclust.shapes import CodedShape, FactoredShape
from projclust.tables import CodedTable, FactorizedTable


def check_stored_tensors(files: list[str], shape: FactoredShape | CodedShape) -> None:
    """Compare the tensors' shapes in the safetensors headers with the ones config.json states.

    What is missing shows after the load; names are no help before it, since transformers renames some on their way.
    """
    stored = read_headers([Path(file) for file in files if Path(file).suffix == ".safetensors"])
    mark = "decoder_scales" if isinstance(shape, CodedShape) else "bases"
    for prefix in [key.removesuffix(mark) for key in stored if key == mark or key.endswith(f".{mark}")]:
        for name, wanted in shape.stored.items():
            found = stored.get(prefix + name)
            if found is not None and found.shape != wanted:
                raise CheckpointError(
                    f"damaged checkpoint: {prefix}{name} has shape {list(found.shape)}, expected {list(wanted)}"
                )


def check_loaded_tables(model: nn.Module) -> None:
    """Check that every stored tensor of the model's compressed tables was read, and holds what it may."""
    for module in model.modules():
        if isinstance(module, FactorizedTable) and not is_dispatched(module):
            _check_factors(module)
        elif isinstance(module, CodedTable) and module.primary is module:
            _check_codes(module)


def _check_factors(table: FactorizedTable) -> None:
    for name in [*table.factor_names(), *(["clusters"] if table.primary is table else [])]:
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
    for name in table.shape.stored:
        if not (was_read(getattr(table, name)) or is_dispatched(table)):
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} is missing")
    try:
        table.prepare()
    except ProjclustError as error:
        raise CheckpointError(f"damaged checkpoint: {error}") from None
