"""The weights beside the table in 8 or 4 bits, by the quantizers that come with onnxruntime."""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from projclust.onnx_export.graph import Exported, copy_of, quietly, shorten
from projclust.onnx_export.needs import Body

# Weights of 4 bits share a scale in groups of so many.
_GROUP = 32


def with_body(exported: Exported, body: Body) -> bytes:
    """A file of the graph with its weights in so many bits; what the nodes of compressed tables do is as it was."""
    graph = _quantized(exported, body)
    shorten(graph)
    return graph.SerializeToString()


def _quantized(exported: Exported, body: Body) -> onnx.ModelProto:
    match body:
        case Body.FLOAT32:
            return copy_of(exported.graph)
        case Body.INT8:
            # The other embeddings of the model as well: positions and types.
            return _dynamic(exported, ["MatMul", "Gemm", "Gather"])
        case Body.INT4:
            return _four_bits(Exported(_dynamic(exported, ["Gather"]), exported.ours))


def _dynamic(exported: Exported, operations: list[str]) -> onnx.ModelProto:
    """Weights as integers of 8 bits, what they are multiplied with rounded as it comes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quietly(), TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            copy_of(exported.graph),
            path,
            op_types_to_quantize=operations,
            nodes_to_exclude=exported.ours,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


def _four_bits(exported: Exported) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with quietly():
        quantizer = MatMulNBitsQuantizer(
            exported.graph, bits=4, block_size=_GROUP, is_symmetric=True, nodes_to_exclude=exported.ours
        )
        quantizer.process()
    return quantizer.model.model
