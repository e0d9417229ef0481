"""Running and looking at ONNX graphs."""

from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
import pytest
import torch
import transformers as hf
from onnx import TensorProto
from tiny_models import VOCABULARY
from torch import Tensor, nn

from projclust.onnx_export.needs import LEAST_TORCH, torch_is_new_enough
from projclust.results.reports import ExportReport

if not torch_is_new_enough():
    pytest.skip(f"exports need torch {LEAST_TORCH}", allow_module_level=True)

# What nodes of tables may do: operations of the default domain that onnxruntime-web's CPU build has as well.
SAFE_OPERATIONS = set(
    """
    Add And Cast Clip Concat Constant ConstantOfShape CumSum Div Equal Expand Floor Gather GatherElements GatherND Gemm
    Greater GreaterOrEqual Less LessOrEqual MatMul Max Min Mod Mul Neg Not Pad Pow Range ReduceSum Reshape
    ScatterElements ScatterND Shape Slice Split Squeeze Sub Tile Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
# A Cast from uint16 fails in browsers alone; the halves are not everywhere either.
SAFE_TYPES = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL}


def exported(module: nn.Module, example: Tensor, path: Path) -> onnx.ModelProto:
    """A module of one input as torch.onnx.export makes it, for any number of whatever is in front."""
    axes = dict.fromkeys(range(example.ndim if example.dtype == torch.int64 else 1), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(module.eval(), (example,), dynamic_shapes=(axes,), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    return onnx.load(path)


def run(graph: onnx.ModelProto, *inputs: Tensor) -> Tensor:
    """The first output in onnxruntime."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {own.name: values.numpy() for own, values in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


def sizes(graph: onnx.ModelProto) -> dict[str, int]:
    """The number of entries of every stored tensor."""
    tensors = [*graph.graph.initializer, *(a.t for node in graph.graph.node for a in node.attribute if a.HasField("t"))]
    return {f"{tensor.name}_{number}": numel(tensor) for number, tensor in enumerate(tensors)}


def numel(tensor: TensorProto) -> int:
    """The number of entries."""
    return int(torch.tensor(tensor.dims, dtype=torch.int64).prod())


def after_loading(graph: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """What onnxruntime makes of a graph while it loads it: what it can compute beforehand it then holds."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def unsafe(graph: onnx.ModelProto) -> set[str]:
    """Operations and types of a table's graph that some onnxruntime does not have."""
    found = {node.op_type for node in graph.graph.node if node.domain or node.op_type not in SAFE_OPERATIONS}
    types = {attribute.i for node in graph.graph.node for attribute in node.attribute if attribute.name == "to"}
    types |= {tensor.data_type for tensor in graph.graph.initializer}
    return found | {TensorProto.DataType.Name(kind) for kind in types - SAFE_TYPES}


class Done(NamedTuple):
    """An export: the model as it was, the folder of graphs, and what was reported."""

    model: hf.PreTrainedModel
    output: Path
    report: ExportReport

    def graph(self, name: str = "model.onnx") -> onnx.ModelProto:
        """One of the graphs."""
        return onnx.load(self.output / "onnx" / name)

    def inputs(self, *shape: int) -> dict[str, Tensor]:
        """Random tokens, the last of which are padding in all sequences but the first."""
        ids = torch.randint(5, VOCABULARY, shape, generator=torch.Generator().manual_seed(2))
        mask = torch.ones_like(ids)
        mask[1:, -2:] = 0
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return {name: given[name] for name in self.report.inputs}

    def outputs(self, *shape: int, name: str = "model.onnx") -> tuple[Tensor, Tensor]:
        """What onnxruntime and PyTorch make of `inputs`, but for what stands for padding."""
        inputs = self.inputs(*shape)
        with torch.no_grad():
            expected = self.model(**inputs)[0]
        found, mask = run(self.graph(name), *inputs.values()), inputs["attention_mask"].bool()
        return (found[mask], expected[mask]) if expected.ndim == 3 else (found, expected)
