"""The weights beside the table in 8 or 4 bits, by the quantizers that come with onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from projclust.onnx_export.check import run_all
from projclust.onnx_export.graph import Exported, copy_of, quietly, shorten
from projclust.onnx_export.needs import Body
from projclust.onnx_export.task import Sample

# Weights of 4 bits share a scale in groups of so many.
_GROUP = 32
# How much of how tokens differ the rounding of a layer's inputs to so many steps may take from its outputs.
_STEPS, _MOST_LOST = 255, 0.15


def with_body(exported: Exported, body: Body, sample: Sample) -> bytes:
    """A file of the graph with its weights in so many bits; what the nodes of compressed tables do is as it was.

    `sample` is what the model is called with to see which layers bear it that their inputs are rounded.
    """
    graph = _quantized(exported, body, sample)
    shorten(graph)
    return graph.SerializeToString()


def _quantized(exported: Exported, body: Body, sample: Sample) -> onnx.ModelProto:
    match body:
        case Body.FLOAT32:
            return copy_of(exported.graph)
        case Body.INT8:
            uneven = _with_uneven_inputs(exported, sample)
            # The other embeddings of the model as well: positions and types.
            graph = _dynamic(exported, ["MatMul", "Gemm", "Gather"], besides=uneven)
            _round_weights_of(graph, uneven)
            return graph
        case Body.INT4:
            return _four_bits(Exported(_dynamic(exported, ["Gather"]), exported.ours))


def _dynamic(exported: Exported, operations: list[str], besides: Sequence[str] = ()) -> onnx.ModelProto:
    """Weights as integers of 8 bits, what they are multiplied with rounded as it comes, but for the nodes named."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quietly(), TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            copy_of(exported.graph),
            path,
            op_types_to_quantize=operations,
            nodes_to_exclude=[*exported.ours, *besides],
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


def _with_uneven_inputs(exported: Exported, sample: Sample) -> list[str]:
    """The layers, by the names of their nodes, whose inputs have a few numbers that dwarf all others.

    One step serves a whole input, from its least to its largest number. Some models let a token or two carry numbers a
    hundred times as large as those of all others, which such a step would round to nothing.
    """
    graph = copy_of(exported.graph)
    weights, ours = {tensor.name: tensor for tensor in graph.graph.initializer}, set(exported.ours)
    layers = {
        node.name: (node.input[0], _columns(node, weights[node.input[1]]))
        for node in graph.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.name not in ours and node.input[1] in weights
    }
    read = sorted({name for name, _ in layers.values()})
    del graph.graph.output[:]
    graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in read)
    inputs = dict(zip(read, run_all(graph.SerializeToString(), sample), strict=True))
    return [node for node, (name, weight) in layers.items() if _lost(inputs[name], weight) > _MOST_LOST]


def _columns(node: onnx.NodeProto, weight: TensorProto) -> np.ndarray:
    """What a layer multiplies with, a column for each output."""
    dense = numpy_helper.to_array(weight)
    return dense.T if any(entry.name == "transB" and entry.i for entry in node.attribute) else dense


def _lost(inputs: np.ndarray, columns: np.ndarray) -> float:
    """What rounding a layer's inputs does to its outputs, relative to how a typical token's differ from the others'."""
    if columns.ndim != 2:
        return 0.0
    tokens = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
    outputs = tokens @ columns
    typical = np.median(np.linalg.norm(outputs - np.median(outputs, 0), axis=1))
    rounding = (tokens.max() - tokens.min()) / _STEPS / 12**0.5
    return float(rounding * np.linalg.norm(columns) / max(typical, 1e-30))


def _round_weights_of(graph: onnx.ModelProto, names: list[str]) -> None:
    """Store the weights of some layers as integers of 8 bits, and multiply with the floats that they stand for."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    done: dict[tuple[str, int], str] = {}
    for place, node in reversed(list(enumerate(graph.graph.node))):
        if node.name not in names:
            continue
        axis = int(any(entry.name == "transB" and entry.i for entry in node.attribute)) ^ 1  # that of the outputs
        key = (node.input[1], axis)
        if key not in done:
            weight = tensors[key[0]]
            done[key] = f"{weight.name}/{axis}"
            dense = numpy_helper.to_array(weight)
            largest = np.abs(dense).max(1 - axis, keepdims=True)
            scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            codes = np.round(dense / scales).astype(np.int8)
            graph.graph.initializer.append(numpy_helper.from_array(codes, f"{done[key]}/codes"))
            graph.graph.initializer.append(numpy_helper.from_array(scales.reshape(-1), f"{done[key]}/scales"))
        first = f"{node.name}/weight"
        node_of_floats = helper.make_node(
            "DequantizeLinear", [f"{done[key]}/codes", f"{done[key]}/scales"], [first], name=first, axis=axis
        )
        node.input[1] = first
        graph.graph.node.insert(place, node_of_floats)
    still = {name for node in graph.graph.node for name in node.input}
    unread = [tensor for tensor in graph.graph.initializer if tensor.name not in still]
    for tensor in unread:
        graph.graph.initializer.remove(tensor)


def _four_bits(exported: Exported) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with quietly():
        quantizer = MatMulNBitsQuantizer(
            exported.graph, bits=4, block_size=_GROUP, is_symmetric=True, nodes_to_exclude=exported.ours
        )
        quantizer.process()
    return quantizer.model.model
