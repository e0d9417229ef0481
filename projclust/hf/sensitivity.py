"""Which errors of an embedding's rows a model notices, measured on the model itself; no text is needed."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.errors import OptionError
from projclust.hf.private import scale_back
from projclust.hf.sequences import draw_sequences, model_inputs, sequence_length, token_frequencies
from projclust.hf.swap import input_embedding
from projclust.weights.own_text import OwnText

# On MiniLM (30522 x 384) 128 to 1024 sequences do equally well, and 32 do harm: worse than no sensitivity at all.
_SEQUENCES, _LENGTH, _BATCH = 256, 32, 8
# 1/2 would be right for errors so small that the model answers linearly. What a few bits leave is not small for an
# encoder: mean cosines of MiniLM's sentence vectors at 1 and at 0.5 bits a weight are .977 and .930 without
# sensitivity, .979 and .937 with 1/8, .980 and .934 to .936 with 1/4, .978 and .918 with 1/2. Logits of a tied output
# layer are linear in a row's error, and there a little more is best: see benchmarks/probe_causal.py.
_EXPONENT, _EXPONENT_WITH_LOGITS = 1 / 4, 0.3
# No direction is free. 0.01 to 0.1 make no difference that stands out of the noise of other seeds, 0.001 of a cosine.
_RIDGE = 0.03

_FAILED = "what the model notices cannot be measured: {}; `sensitivity` none does without it"


def model_sensitivity(
    model: PreTrainedModel, frequencies: Tensor | None = None, seed: int = 0, own_text: OwnText | None = None
) -> Tensor:
    """How much the errors of rows count for `fit_coded`: an error e counts as |e M|^2.

    `frequencies` (n,) say, on any scale, how often each row is looked up; by default all alike. Where there is text of
    the model's own, that is what it reads. M is (d, d), float64 on the CPU, symmetric and positive definite; M^4, or
    where logits count M^(1/0.3), has trace 1.03 d. The model comes out unchanged.

    Raises:
        ProjclustError: the model has no embedding that can be compressed, it takes more than tokens, or its gradients
            are zero or not finite.
    """
    gradients, states = sensitivities(model, frequencies, seed, own_text)
    if states is None:
        return ridged_power(gradients, _EXPONENT)
    return ridged_power((gradients + states) / 2, _EXPONENT_WITH_LOGITS)


def ridged_power(matrix: Tensor, exponent: float) -> Tensor:
    """(d, d) a power of a symmetric positive semidefinite matrix (d, d) of trace d, with a ridge on it."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * (values.clamp(min=0) + _RIDGE) ** exponent) @ vectors.T


def sensitivities(
    model: PreTrainedModel, frequencies: Tensor | None = None, seed: int = 0, own_text: OwnText | None = None
) -> tuple[Tensor, Tensor | None]:
    """How strongly a model answers to small errors of the embedding's rows, direction by direction.

    For errors e with mean product C, the mean squared change of what the model says is about trace(C @ sensitivity), up
    to scale. The model reads its own text. Without one, half of the sequences are drawn from the frequencies, so that
    they resemble text, and half from their square root, so that rare rows are heard too.

    Returns:
        two matrices (d, d), float64 on the CPU, each of trace d:
        the mean of g g^T over all positions, where g is the gradient of a random projection of the last hidden states
        with respect to the embedding's output;
        the mean of h h^T, where h is what the output layer is given. It is None unless the model is a generative one
        whose output layer is tied to the embedding: masked language models are mostly used without theirs.
    """
    table = input_embedding(model)[1].weight
    if table.dtype == torch.float16:  # gradients may leave its range
        model = deepcopy(model).float()
        table = input_embedding(model)[1].weight
    n, d = table.shape
    generator = torch.Generator().manual_seed(seed)
    if own_text is None:
        batches = _random_batches(model, token_frequencies(model, frequencies, n), generator)
    else:
        batches = iter(own_text.sequences.split(_BATCH))
    gradients = torch.zeros(d, d, dtype=torch.float64)
    states = torch.zeros_like(gradients)
    head = model.get_output_embeddings() if model.can_generate() else None
    if isinstance(head, nn.Embedding):  # FSMT's decoder multiplies with its own embedding, which it looks up as well
        head = None
    tied = head is not None and head.weight is table
    with measuring(model), ExitStack() as stack:
        looked_up = stack.enter_context(_lookups(model, table))
        given = None if head is None else stack.enter_context(_without_logits(head, n))
        for ids in batches:
            try:
                hidden = _last_hidden(model, ids.to(table.device), given)
                direction = torch.randn(hidden.shape, generator=generator).to(hidden)
                found = torch.autograd.grad(hidden, looked_up, direction)
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # it takes more than tokens, say
                raise OptionError(_FAILED.format(" ".join(str(error).split()))) from error
            gradients += sum(_second_moment(gradient) for gradient in found)
            if tied:
                states += _second_moment(hidden.detach())
            looked_up.clear()
    return _of_trace_d(gradients), _of_trace_d(states) if tied else None


def _random_batches(model: PreTrainedModel, common: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    shape = (_BATCH, sequence_length(model, _LENGTH))
    for number in range(_SEQUENCES // _BATCH):
        yield draw_sequences(model, (common, common.sqrt())[number % 2], shape, generator)


def _second_moment(vectors: Tensor) -> Tensor:
    rows = vectors.flatten(0, -2).float()
    return (rows.T @ rows).double().cpu()


def _of_trace_d(moment: Tensor) -> Tensor:
    trace = float(moment.trace())
    if not 0 < trace < math.inf:
        raise OptionError(_FAILED.format("its gradients are zero or not finite"))
    return moment * (len(moment) / trace)


def _last_hidden(model: PreTrainedModel, ids: Tensor, given: list[Tensor] | None) -> Tensor:
    """(b, t, h) what the output layer is given, or without one the last hidden states."""
    inputs = model_inputs(model, ids)
    if given is None:
        hidden: Tensor = model.base_model(**inputs)[0]
        return hidden
    model(**inputs)
    return given.pop()


@contextmanager
def measuring(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters inside; as before afterwards, weights included."""
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        scale_back(model)
        for module in training:
            module.training = True  # train() would reach into its parts
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _lookups(model: PreTrainedModel, table: Tensor) -> Iterator[list[Tensor]]:
    """The outputs of all embeddings of this table, an encoder's and a decoder's, since the list was last cleared."""
    outputs: list[Tensor] = []

    def capture(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # a model may change what it looked up in place

    readers = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is table]
    hooks = [module.register_forward_hook(capture) for module in readers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_logits(head: nn.Module, n: int) -> Iterator[list[Tensor]]:
    """What the output layer is given; logits, large and of no use here, are not computed."""
    given: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], n)

    own = vars(head).get("forward")  # accelerate's hooks put one there
    head.forward = forward
    try:
        yield given
    finally:
        del head.forward
        if own is not None:
            head.forward = own
