"""What a model is asked for, and what of it a graph can do."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.errors import ProjclustError
from projclust.onnx_export.needs import outputs_of

Sample = dict[str, Tensor]
"""What a model is called with, by the names of its inputs."""


@dataclass(frozen=True)
class Task:
    """What a graph takes and gives; inputs are int64 (batch, sequence).

    Attributes:
        name: as the Hub calls it, and pipelines of transformers.js.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph(nn.Module):
    """A model as a function of tensors: inputs by their place, outputs in the order of the task."""

    def __init__(self, model: PreTrainedModel, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        given = dict(zip(self.task.inputs, inputs, strict=True))
        # No cache of keys and values: it would be another output, and other graphs would have to read it.
        more = {"use_cache": False} if self.task.name == "text-generation" else {}
        result = self.model(**given, **more, return_dict=True)
        return tuple(result[name] for name in self.task.outputs)


def task_of(model: PreTrainedModel) -> Task:
    """What a model does, as its class says.

    Raises:
        ProjclustError: it is of a kind that is not exported.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ProjclustError(f"{kind} has an encoder and a decoder, which need a graph each: it cannot be exported")
    parameters = signature(model.forward).parameters
    found = outputs_of(kind)
    if found is None or "input_ids" not in parameters or "pixel_values" in parameters:
        raise ProjclustError(
            f"{kind} cannot be exported: there are graphs of text models without a head and of those for "
            "sequence or token classification, question answering, masked and causal language modelling"
        )
    inputs = ["input_ids", "attention_mask"]
    # RoBERTa's one type and no type at all need no input; runtimes fill in zeros where there are more.
    types = getattr(model.config, "type_vocab_size", None) or 0
    if types > 1 and "token_type_ids" in parameters:
        inputs.append("token_type_ids")
    return Task(found[0], tuple(inputs), found[1])


def draw_inputs(task: Task, n: int, shape: tuple[int, int], seed: int = 0) -> Sample:
    """Random tokens of a vocabulary of n, (batch, sequence), the last of some sequences being padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(n, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, shape[1] // 2 :] = 0
    types = torch.zeros_like(ids)
    types[:, shape[1] // 3 :] = 1
    named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: named[name] for name in task.inputs}


def run_torch(model: PreTrainedModel, task: Task) -> Callable[[Sample], list[Tensor]]:
    """PyTorch's side of the check."""
    graph = Graph(model, task)

    def run(inputs: Sample) -> list[Tensor]:
        with torch.no_grad():
            return list(graph(*inputs.values()))

    return run
