"""The job behind `projclust inspect`: what a checkpoint holds, from its headers and the bytes of a compressed table."""

import math
from dataclasses import replace
from operator import mul
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel

from projclust.checkpoints.graphs import stored_graphs
from projclust.checkpoints.load import check_layers, model_class
from projclust.checkpoints.source import (
    CONFIG,
    REPORT_FILE,
    STATIC,
    is_static,
    local_folder,
    one_line,
    quantization_method,
    read_json,
    resolve_checkpoint,
)
from projclust.checkpoints.static import as_transformers
from projclust.checkpoints.tensors import StoredTensor, embedding_tensors, has_weights, stored_tensors, weight_files
from projclust.coding.layout import class_layouts
from projclust.coding.packing import unpack_nibbles
from projclust.coding.stored import read_classes
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.body import stored_body
from projclust.hf.config import FORMAT_VERSIONS, ProjClustConfig
from projclust.hf.private import without_weights
from projclust.hf.stored import check_digest, check_stored_tensors, is_dense, stored_dtypes
from projclust.hf.swap import input_embedding, tied_names
from projclust.jobs.download import checkpoint_download, graph_download
from projclust.onnx_export.needs import outputs_of
from projclust.options import Body
from projclust.results.reports import HowCompressed, InspectExportReport, InspectReport, StoredGraph, StoredTable
from projclust.shapes import CodedShape


def inspect_folder(path: str, revision: str | None = None) -> InspectReport | InspectExportReport:
    """Return what a checkpoint holds or, of a folder of ONNX files alone, what these do; no model is loaded."""
    folder = as_transformers(resolve_checkpoint(path, revision))
    if not has_weights(folder):
        if local_folder(path) is None:
            folder = resolve_checkpoint(path, revision, graphs=True)
        if graphs := stored_graphs(folder):
            return _graphs(path, folder, graphs)
    return _checkpoint(path, folder)


def _graphs(path: str, folder: Path, graphs: list[StoredGraph]) -> InspectExportReport:
    model = _described(folder, read_json(folder / CONFIG), 0)
    made = outputs_of(type(model).__name__)
    return InspectExportReport(
        path=path,
        model_class=type(model).__name__,
        task=None if made is None else made[0],
        graphs=graphs,
        download=graph_download(folder, min(graph.bytes for graph in graphs)),
        model_bytes_dense=4 * model.num_parameters(),
    )


def inspect_checkpoint(path: str, revision: str | None = None) -> InspectReport:
    """Return shapes, sizes, error and provenance of a dense or compressed checkpoint; no model is loaded."""
    return _checkpoint(path, as_transformers(resolve_checkpoint(path, revision)))


def _checkpoint(path: str, folder: Path) -> InspectReport:
    config = read_json(folder / CONFIG)
    tensors = stored_tensors(folder)
    method = quantization_method(config)
    if method not in (None, "projclust"):
        raise ProjclustError(f"{path} is quantized with {method}, which projclust does not read")
    model = _described(folder, config, len(tensors))
    name, module = input_embedding(model)
    n, d = module.num_embeddings, module.embedding_dim
    embedding = embedding_tensors(tensors, name, tied_names(model))
    weight = next((tensor for key, tensor in embedding.items() if key.endswith("weight")), None)
    if weight is None:
        raise CheckpointError(f"{path} holds no weights for its embedding {name}")
    wanted: tuple[int, ...] = (n, d)
    settings: ProjClustConfig | None = None
    if method == "projclust":
        settings = ProjClustConfig.from_dict(dict(config["quantization_config"]))
        if settings.version not in FORMAT_VERSIONS:
            raise CheckpointError(f"{folder} has projclust format {settings.version!r}: upgrade projclust")
        try:
            shape = settings.stored_shape()
        except ProjclustError as error:
            raise CheckpointError(f"{folder}: damaged checkpoint: {error}") from None
        if (shape.height, shape.d) != (n, d):
            raise CheckpointError(f"{path} is damaged: {name} is {n} x {d}, but its factors {shape.height} x {shape.d}")
        wanted = shape.stored["weight"]
        if is_dense(tensors, shape, model):
            raise CheckpointError(
                f"{path} holds a dense {name}, though its config.json tells of a compressed one: `projclust expand` "
                "writes it with a config that is right"
            )
    if weight.shape != wanted:
        raise CheckpointError(f"{path} is damaged: {name} has shape {weight.shape}, config.json asks for {wanted}")
    if settings is not None:
        check_stored_tensors(tensors, shape)
        if lacking := sorted(stored_dtypes(shape).keys() - {key.rpartition(".")[2] for key in embedding}):
            raise CheckpointError(f"{path} is damaged: {name}.{lacking[0]} is missing")
        check_digest(weight_files(folder), settings.sha256, shape)
    stored = sum(tensor.bytes for tensor in embedding.values())
    report = InspectReport(
        path=path,
        compressed=method == "projclust",
        model_class=STATIC if is_static(config) else model_class(config).__name__,
        embedding=name,
        n=n,
        d=d,
        bytes_stored=stored,
        bits_per_weight=8 * stored / (n * d),
        model_bytes_stored=sum(tensor.bytes for tensor in tensors.values()),
        parts=dict(sorted(embedding.items())),
        download=checkpoint_download(folder, stored, model, settings),
        graphs=stored_graphs(folder),
    )
    if settings is None:
        return report
    if isinstance(shape, CodedShape):
        table, codes = _coding(folder, embedding, shape), str(settings.codes)
    else:
        factors = [tensor for key, tensor in embedding.items() if not key.endswith("clusters")]
        table, codes = StoredTable(sum(math.prod(tensor.shape) for tensor in factors)), weight.dtype
    ranks = table.ranks or settings.cluster_ranks or [settings.rank] * settings.n_clusters
    how = _how(folder, settings, codes, ranks)
    return replace(report, stored=table, how=_with_body(how, model, tensors))


def _with_body(how: HowCompressed, model: PreTrainedModel, tensors: dict[str, StoredTensor]) -> HowCompressed:
    """Add what the rounded weights take."""
    if how.body is None:
        return how
    packed = stored_body(model, tensors, Body(how.body)).values()
    return replace(
        how,
        body_bytes_dense=sum(own.bytes_dense for own in packed),
        body_bytes_stored=sum(own.bytes_stored for own in packed),
    )


def _described(folder: Path, config: dict[str, Any], tensors: int) -> PreTrainedModel:
    """The model that config.json describes, without weights."""
    kind = model_class(config)
    check_layers(config, tensors, folder)
    try:
        model_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return without_weights(kind, model_config)
    except Exception as error:  # a damaged config can make transformers raise nearly anything
        raise CheckpointError(f"{folder / CONFIG} describes no model: {one_line(error)}") from error


def _coding(folder: Path, embedding: dict[str, StoredTensor], shape: CodedShape) -> StoredTable:
    """Return what a coded table's classes hold; only its class ids and kinds of codes are read."""
    stored = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in embedding.keys() & set(tensors.keys()):
                name = key.rpartition(".")[2]
                if name in ("classes", "kinds"):
                    stored[name] = tensors.get_tensor(key)
    try:
        classes = read_classes({"weight": torch.empty(0), **stored}, shape.n, shape.classes)
        layouts = class_layouts(unpack_nibbles(stored["kinds"], shape.rank))
    except (ProjclustError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is damaged: {one_line(error)}") from None
    rows = torch.bincount(classes, minlength=shape.classes).tolist()
    ranks = [len(layout.coded) for layout in layouts]
    vectors = shape.decoders * shape.rank + shape.affine * shape.classes + shape.added
    return StoredTable(
        params_stored=sum(map(mul, rows, ranks)) + vectors * shape.d,
        decoders=shape.decoders,
        cluster_sizes=rows,
        ranks=ranks,
        row_bytes=[layout.row_bytes for layout in layouts],
    )


def _how(folder: Path, settings: ProjClustConfig, codes: str, ranks: list[int]) -> HowCompressed:
    how = HowCompressed(
        k=settings.n_clusters,
        j=settings.rank,
        ranks=ranks,
        loss=settings.loss,
        affine=settings.affine,
        method=settings.method,
        weights=settings.weights or "uniform",
        bits=settings.bits,
        metric=settings.metric if settings.codes == "auto" else None,
        codes=codes,
        seed=settings.seed,
        format_version=settings.version,
        body=settings.body,
    )
    # Written by `projclust compress`, not by save_pretrained: a fine-tuned copy has none, and its error is unknown.
    if (folder / REPORT_FILE).is_file():
        report = read_json(folder / REPORT_FILE)
        kinds = {"relative_error": float, "weighted_relative_error": float, "model": str, "versions": dict}
        for name, kind in kinds.items():
            if not isinstance(report.get(name), kind):
                raise CheckpointError(f"{folder / REPORT_FILE} is damaged: {name} is {report.get(name)!r}")
        how = replace(how, **{name: report[name] for name in kinds})
    return how
