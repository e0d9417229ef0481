"""A generative model's own text, which stands in for data where rows are weighed and sensitivity is measured."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from projclust.errors import ProjclustError
from projclust.hf.sensitivity import measuring
from projclust.hf.sequences import sequence_length, special_token
from projclust.hf.swap import input_embedding
from projclust.weights.own_text import OwnText

# How many sequences of how many tokens.
_SHAPE = (96, 48)


def own_text_of(model: PreTrainedModel, seed: int, shape: tuple[int, int] = _SHAPE) -> Callable[[], OwnText] | None:
    """What makes the text that a model writes out of nothing; None where it writes none, or not without an encoder."""
    if not model.can_generate() or model.config.is_encoder_decoder:
        return None
    return partial(own_text, model, seed, shape)


def own_text(model: PreTrainedModel, seed: int = 0, shape: tuple[int, int] = _SHAPE) -> OwnText:
    """So many sequences of at most so many tokens, each drawn as the model finds it probable after those before it.

    Source: Z. Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", 2023, section 2.

    Raises:
        ProjclustError: the model cannot.
    """
    n = input_embedding(model)[1].num_embeddings
    count, length = shape[0], sequence_length(model, shape[1])
    recorder = _Recorder(n)
    # Without a token that ends a text: what follows it begins another.
    settings = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=length - 1)
    start = special_token(model, ["bos", "cls", "eos"], n)
    # What a model's own settings say fills whatever others leave out.
    own_settings, model.generation_config = model.generation_config, settings
    devices = [model.device] if model.device.type == "cuda" else []
    with measuring(model), torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        ids = torch.full((count, 1), start) if start is not None else torch.randint(n, (count, 1))
        ids = ids.to(model.device)
        try:
            said = model.generate(
                ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList([recorder])
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ProjclustError(f"the model's own text cannot be made: {' '.join(str(error).split())}") from error
        finally:
            model.generation_config = own_settings
    total = recorder.sums.sum()
    if not 0 < float(total) < torch.inf:
        raise ProjclustError("the model's own text cannot be made: its logits are not finite")
    return OwnText(said.cpu(), recorder.sums.cpu() / total)


class _Recorder(LogitsProcessor):
    """Sums the distributions that tokens are drawn from."""

    def __init__(self, n: int) -> None:
        self.sums: Any = torch.zeros(n, dtype=torch.float64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        n = min(len(self.sums), scores.shape[1])  # an output layer of its own may be padded
        self.sums = self.sums.to(scores.device)
        self.sums[:n] += scores[:, :n].float().softmax(1).sum(0)
        return scores
