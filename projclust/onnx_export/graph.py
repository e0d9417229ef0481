"""Graphs of models by torch.onnx.export, stripped of what nobody reads, with small integers stored as bytes."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer
from transformers import PreTrainedModel

from projclust.checkpoints.source import one_line
from projclust.errors import ProjclustError
from projclust.onnx_export.task import Graph, Task, draw_inputs

# The newest that onnxruntime has taken for years, in browsers too, and the oldest that the exporter makes by itself.
OPSET = 18
# Nodes of compressed tables have names that begin so: quantizers leave them alone.
OURS = "projclust/"
# Numbers computed beforehand: as many as shapes and small constants have, and no codes, which would become wider.
_MOST_FOLDED = 1024
# Integers of so many numbers are stored as the narrowest type that holds them.
_FEW = 64
_MOST_BYTES = 2**31 - 2**24  # what a file of protobuf can hold, less some for the nodes
_HIERARCHY = "pkg.torch.onnx.class_hierarchy"


@dataclass(frozen=True)
class Exported:
    """A graph, and the nodes of the compressed tables in it."""

    graph: onnx.ModelProto
    ours: list[str]


def export_graph(model: PreTrainedModel, task: Task) -> Exported:
    """A float32 model in evaluation mode as a graph for any batch and any length; compressed tables stay as stored.

    Raises:
        ProjclustError: torch cannot export it, or it is too large for a file.
    """
    kind = type(model).__name__
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))  # tied ones once
    if size > _MOST_BYTES:
        raise ProjclustError(f"{kind} has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2: it is too large")
    inputs = draw_inputs(task, model.get_input_embeddings().num_embeddings, (2, 6))
    axes = {0: "batch", 1: "sequence"}
    try:
        with quietly():
            program = torch.onnx.export(
                Graph(model, task).eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(task.outputs),
                dynamic_shapes=((axes,) * len(inputs),),  # of a star argument
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            optimizer.optimize(program.model, input_size_limit=_MOST_FOLDED, output_size_limit=_MOST_FOLDED)
            graph = program.model_proto
    except Exception as error:  # of many classes, for a model can do anything
        raise ProjclustError(f"{kind} cannot be exported: {one_line(error)}") from error
    ours = _name_nodes(graph)
    _strip(graph)
    _narrow(graph, ours)
    return Exported(graph, ours)


def copy_of(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Another one, for quantizers change what they are given."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    return other


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what exporters and quantizers tell of themselves, by print, warnings and loggers, the root among them."""
    before, unread = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name_nodes(graph: onnx.ModelProto) -> list[str]:
    """Name every node anew, those of compressed tables so that they are known; the names of these."""
    ours = []
    for number, node in enumerate(graph.graph.node):
        classes = "".join(entry.value for entry in node.metadata_props if entry.key == _HIERARCHY)
        is_ours = "'projclust.tables." in classes
        node.name = f"{OURS if is_ours else ''}{node.op_type}_{number}"
        if is_ours:
            ours.append(node.name)
    return ours


def shorten(graph: onnx.ModelProto) -> None:
    """Give short names to what passes between nodes, and none to nodes: long ones take more room than small tables."""
    own = graph.graph
    if any(attribute.HasField("g") for node in own.node for attribute in node.attribute):
        return  # what is inside reads names from outside
    kept = {value.name for value in (*own.input, *own.output)}
    taken = kept | {tensor.name for tensor in own.initializer}
    free = (name for name in map(str, count()) if name not in taken)
    short = {name: next(free) for node in own.node for name in node.output if name and name not in kept}
    for node in own.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
    del own.value_info[:]


def _strip(graph: onnx.ModelProto) -> None:
    """Remove what runtimes do not read: where in Python each node comes from, and types that they derive."""
    own = graph.graph
    for part in (graph, own, *own.node, *own.input, *own.output, *own.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del own.value_info[:]
    del graph.functions[:]


def _narrow(graph: onnx.ModelProto, ours: list[str]) -> None:
    """Store the integers of compressed tables in as few bytes as hold them, and make them wide where they are read.

    They may have a common divisor: tables of 256 values begin at multiples of 256.
    """
    own = graph.graph
    known = set(ours)
    read_by_ours = {name for node in own.node if node.name in known for name in node.input}
    added: list[onnx.NodeProto] = []
    for tensor in [tensor for tensor in own.initializer if tensor.name in read_by_ours]:
        name, wide = tensor.name, tensor.data_type
        values = numpy_helper.to_array(tensor)
        if wide not in (TensorProto.INT32, TensorProto.INT64) or values.size <= _FEW:
            continue
        divisor = max(int(np.gcd.reduce(values, axis=None)), 1)
        kind = next((kind for kind in (np.uint8, np.int32) if _holds(kind, values // divisor)), np.int64)
        if np.dtype(kind).itemsize >= values.itemsize:
            continue
        tensor.CopyFrom(numpy_helper.from_array((values // divisor).astype(kind), f"{name}_narrow"))
        own.initializer.append(numpy_helper.from_array(np.array(divisor, values.dtype), f"{name}_divisor"))
        added += [
            helper.make_node("Cast", [tensor.name], [f"{name}_wide"], f"{OURS}Cast_{name}", to=wide),
            helper.make_node("Mul", [f"{name}_wide", f"{name}_divisor"], [name], f"{OURS}Mul_{name}"),
        ]
    nodes = [*added, *own.node]
    del own.node[:]
    own.node.extend(nodes)
    ours.extend(node.name for node in added)


def _holds(kind: type[np.integer], values: np.ndarray) -> bool:
    limits = np.iinfo(kind)
    return bool(values.min() >= limits.min and values.max() <= limits.max)
