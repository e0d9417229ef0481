"""The job behind `projclust inspect`: what a checkpoint holds, from its headers alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.checkpoint import (
    CONFIG,
    embedding_tensors,
    model_class,
    one_line,
    quantization_method,
    read_json,
    resolve_checkpoint,
    stored_tensors,
)
from projclust.hf.config import FORMAT_VERSION, ProjClustConfig
from projclust.hf.swap import input_embedding

from .compress import REPORT_FILE


def inspect_checkpoint(path: str, revision: str | None = None) -> dict[str, Any]:
    """Shapes, sizes, error and provenance of a dense or compressed checkpoint; no weight is loaded.

    Raises:
        ProjclustError: it is not a checkpoint projclust can read.
    """
    folder = resolve_checkpoint(path, revision)
    config = read_json(folder / CONFIG)
    tensors = stored_tensors(folder)
    method = quantization_method(config)
    if method not in (None, "projclust"):
        raise ProjclustError(f"{path} is quantized with {method}, which projclust does not read")
    name, n, d = _embedding(folder, config)
    embedding = embedding_tensors(tensors, name)
    weight = next((tensor for key, tensor in embedding.items() if key.endswith("weight")), None)
    if weight is None:
        raise CheckpointError(f"{path} holds no weights for its embedding {name}")
    if weight.shape[0] != n or (method is None and weight.shape != (n, d)):
        raise CheckpointError(f"{path} is damaged: {name} has shape {weight.shape}, config.json asks for {n} x {d}")
    total = sum(tensor.bytes for tensor in tensors.values())
    stored = sum(tensor.bytes for tensor in embedding.values())
    parts = {key: {"shape": list(t.shape), "dtype": t.dtype, "bytes": t.bytes} for key, t in sorted(embedding.items())}
    result = {
        "path": path,
        "compressed": method == "projclust",
        "model_class": model_class(config).__name__,
        "embedding": name,
        "n": n,
        "d": d,
        "bytes_stored": stored,
        "bits_per_weight": 8 * stored / (n * d),
        "model_bytes_stored": total,
        "parts": parts,
    }
    if method == "projclust":
        result |= _compression(folder, config, embedding)
    return result


def _embedding(folder: Path, config: dict[str, Any]) -> tuple[str, int, int]:
    """Name and shape of the model's input embedding, from the model built without data."""
    kind = model_class(config)
    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            # AutoModel has from_config, a model class has _from_config: both build without weights.
            build = getattr(kind, "from_config", None) or kind._from_config
            model = build(settings)
    except Exception as error:  # a damaged config can make transformers raise nearly anything
        raise CheckpointError(f"{folder / CONFIG} describes no model: {one_line(error)}") from error
    name, embedding = input_embedding(model)
    return name, embedding.num_embeddings, embedding.embedding_dim


def _compression(folder: Path, config: dict[str, Any], embedding: dict[str, Any]) -> dict[str, Any]:
    settings = ProjClustConfig.from_dict(dict(config["quantization_config"]))
    if settings.version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has projclust format {settings.version!r}: upgrade projclust")
    try:
        settings.check_shapes()
    except ProjclustError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    result = {
        "k": settings.n_clusters,
        "j": settings.rank,
        "ranks": [settings.rank] * settings.n_clusters,
        "affine": settings.affine,
        "method": settings.method,
        "weights": getattr(settings, "weights", "uniform"),
        "codes": next((part.dtype for name, part in embedding.items() if name.endswith("weight")), None),
        "seed": settings.seed,
        "format_version": settings.version,
        "relative_error": None,
        "weighted_relative_error": None,
        "model": None,
        "versions": None,
    }
    # Written by `projclust compress`, not by save_pretrained: a fine-tuned copy has none, and its error is unknown.
    if (folder / REPORT_FILE).is_file():
        report = read_json(folder / REPORT_FILE)
        kinds = {"relative_error": float, "weighted_relative_error": float, "model": str, "versions": dict}
        for name, kind in kinds.items():
            if not isinstance(report.get(name), kind):
                raise CheckpointError(f"{folder / REPORT_FILE} is damaged: {name} is {report.get(name)!r}")
            result[name] = report[name]
    return result
