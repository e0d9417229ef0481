"""Whether onnxruntime makes of a file what PyTorch makes of the model."""

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from projclust.checkpoints.source import one_line
from projclust.errors import ProjclustError
from projclust.onnx_export.task import Sample, Task, draw_inputs

# The largest difference between outputs, of numbers up to 1; of larger ones in proportion.
TOLERANCE = 1e-4
# Batches and lengths that are tried, other ones than the export saw among them; some models have few positions.
_SHAPES = ((1, 3), (2, 6), (3, 16))

Run = Callable[[Sample], list[Tensor]]


def run_onnx(graph: bytes, task: Task) -> Run:
    """onnxruntime's side of the check, on the CPU.

    Raises:
        ProjclustError: onnxruntime does not take the graph.
    """
    session = _session(graph)

    def run(inputs: Sample) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(found)) for found in session.run(list(task.outputs), _numpy(inputs))]

    return run


def run_all(graph: bytes, inputs: Sample) -> list[np.ndarray]:
    """Every output of a graph, in its order; raises as `run_onnx`."""
    return list(_session(graph).run(None, _numpy(inputs)))


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class of its own for each kind of failure
        raise ProjclustError(f"onnxruntime does not load what was exported: {one_line(error)}") from error


def _numpy(inputs: Sample) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in inputs.items()}


def largest_difference(task: Task, n: int, ours: Run, theirs: Run) -> float:
    """Between two ways to run a model, on random tokens of a vocabulary of n; what stands for padding is not compared.

    Of outputs larger than 1 it is the difference divided by the largest of them.

    Raises:
        ProjclustError: one of them gives other shapes or what is no number, or they differ by more than the tolerance.
    """
    worst = 0.0
    for seed, shape in enumerate(_SHAPES):
        inputs = draw_inputs(task, n, shape, seed)
        for first, second in zip(ours(inputs), theirs(inputs), strict=True):
            worst = max(worst, _difference(first, second, inputs["attention_mask"].bool()))
    if worst > TOLERANCE:
        raise ProjclustError(f"onnxruntime and PyTorch differ by {worst:.1e} on random tokens: nothing was written")
    return worst


def require_numbers(task: Task, n: int, run: Run) -> None:
    """Refuse a graph that does not run, or makes what is no number.

    Raises:
        ProjclustError: it is so.
    """
    for seed, shape in enumerate(_SHAPES):
        try:
            found: Sequence[Tensor] = run(draw_inputs(task, n, shape, seed))
        except Exception as error:
            raise ProjclustError(f"onnxruntime does not run what was exported: {one_line(error)}") from error
        if not all(bool(part.isfinite().all()) for part in found):
            raise ProjclustError("the quantized body makes NaN or infinite numbers: choose another --body")


def _difference(first: Tensor, second: Tensor, mask: Tensor) -> float:
    if first.shape != second.shape:
        raise ProjclustError(f"onnxruntime gives outputs of {tuple(first.shape)}, PyTorch of {tuple(second.shape)}")
    if first.shape[:2] == mask.shape:
        first, second = first[mask], second[mask]
    difference = (first - second).abs().max() / second.abs().max().clamp(min=1)
    return float(difference) if bool(difference.isfinite()) else float("inf")
