"""The job behind `projclust export`: a checkpoint in, ONNX files for other programs out."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from projclust.checkpoints.card import CARD_FILE, exported_card
from projclust.checkpoints.folder import check_space, new_folder, write_options
from projclust.checkpoints.load import Loaded, load_checkpoint
from projclust.checkpoints.save import copy_side_files
from projclust.checkpoints.source import CONFIG, quantization_method, read_json, resolve_checkpoint
from projclust.checkpoints.static import as_transformers
from projclust.errors import ProjclustError
from projclust.hf.sequences import draw_sequences, sequence_length, token_frequencies
from projclust.jobs.common import SILENT, Hooks, versions
from projclust.jobs.options import ExportOptions
from projclust.onnx_export.body import with_body
from projclust.onnx_export.check import largest_difference, require_numbers, run_onnx
from projclust.onnx_export.graph import OPSET, export_graph
from projclust.onnx_export.needs import GRAPHS, Body
from projclust.onnx_export.task import Sample, Task, draw_inputs, run_torch, task_of
from projclust.results.reports import ExportedFile, ExportReport
from projclust.tables import CompressedTable

# Sequences, and their length where the model takes so many positions.
_SENTENCES = (8, 32)


def export_checkpoint(options: ExportOptions, hooks: Hooks = SILENT) -> ExportReport:
    """Write the graphs of a checkpoint, checked against PyTorch, and what programs read beside them.

    Raises:
        ProjclustError: a user's mistake, or a model that cannot be exported; nothing is left behind.
    """
    options.check_folder()
    source = as_transformers(resolve_checkpoint(options.model, options.revision))
    hooks.stage(f"reading {options.model}")
    model = _model_of(options.model, source, hooks)
    task = task_of(model)
    n = model.get_input_embeddings().num_embeddings
    hooks.stage("exporting")
    exported = export_graph(model, task)
    hooks.stage("comparing with PyTorch")
    sample = _sentences(model, task)
    plain = with_body(exported, Body.FLOAT32, sample)
    difference = largest_difference(task, n, run_onnx(plain, task), run_torch(model, task))
    graphs: dict[Body, bytes] = {}
    for body in options.bodies:
        hooks.stage(f"body {body}")
        graphs[body] = plain if body == Body.FLOAT32 else with_body(exported, body, sample)
        require_numbers(task, n, run_onnx(graphs[body], task))
    report = ExportReport(
        model=options.model,
        output=options.output,
        model_class=type(model).__name__,
        task=task.name,
        inputs=task.inputs,
        outputs=task.outputs,
        opset=OPSET,
        files=[ExportedFile(f"{GRAPHS}/{body.file}", str(body), len(graph)) for body, graph in graphs.items()],
        model_bytes_dense=_dense_bytes(model),
        largest_difference=difference,
        versions=versions("onnx", "onnxruntime"),
    )
    check_space(Path(options.output), sum(map(len, graphs.values())))
    with new_folder(Path(options.output), options.overwrite) as folder:
        copy_side_files(source, folder)
        (folder / GRAPHS).mkdir()
        for body, graph in graphs.items():
            (folder / GRAPHS / body.file).write_bytes(graph)
        _write_config(model, graphs, folder)
        (folder / CARD_FILE).write_text(exported_card(report, source), encoding="utf-8")
        write_options(folder, options)
    return report


def _sentences(model: PreTrainedModel, task: Task) -> Sample:
    """Random tokens between the special tokens that the model's config knows, without padding."""
    n = model.get_input_embeddings().num_embeddings
    shape = (_SENTENCES[0], sequence_length(model, _SENTENCES[1]))
    inputs = draw_inputs(task, n, shape)
    generator = torch.Generator().manual_seed(0)
    ids = draw_sequences(model, token_frequencies(model, None, n), shape, generator)
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _model_of(name: str, source: Path, hooks: Hooks) -> PreTrainedModel:
    """The model in float32, to be evaluated."""
    method = quantization_method(read_json(source / CONFIG))
    if method not in (None, "projclust"):
        raise ProjclustError(f"{name} is quantized by {method}: start from the dense model, or one of projclust's")
    loaded: Loaded = load_checkpoint(source)
    # A pooler that no output reads is often left out of a checkpoint.
    if missing := [part for part in loaded.missing if ".pooler." not in f".{part}"]:
        hooks.warn(f"{len(missing)} parameters are not in the checkpoint and were newly initialised: {missing[0]}, ...")
    model = loaded.model.float().eval()
    for module in model.modules():
        if isinstance(module, CompressedTable):
            module.prepare()
    return model


def _dense_bytes(model: PreTrainedModel) -> int:
    """The bytes of all weights in float32, had the table stayed dense."""
    compressed = {
        id(part) for module in model.modules() if isinstance(module, CompressedTable) for part in _own(module)
    }
    others = {id(part): part for part in model.parameters() if id(part) not in compressed}
    embedding: Any = model.get_input_embeddings()
    table = embedding.num_embeddings * embedding.embedding_dim if compressed else 0
    return 4 * (table + sum(part.numel() for part in others.values()))


def _own(module: CompressedTable[Any]) -> list[torch.Tensor]:
    """What holds the table, but for a head's bias."""
    parts = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [tensor for name, tensor in parts if name != "bias"]


def _write_config(model: PreTrainedModel, graphs: dict[Body, bytes], folder: Path) -> None:
    """A config.json that programs without projclust take: of a dense model, in float32."""
    config = deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures, config.dtype = [type(model).__name__], "float32"
    config.save_pretrained(folder)
    stated = read_json(folder / CONFIG)
    if Body.INT8 not in graphs:  # what transformers.js takes in browsers where a page asks for nothing
        stated["transformers.js_config"] = {"dtype": list(graphs)[-1].dtype}
    (folder / CONFIG).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
