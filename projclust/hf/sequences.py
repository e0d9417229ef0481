"""Random sequences of a model's own tokens: enough to measure what it notices, where no text is at hand."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def token_frequencies(model: PreTrainedModel, frequencies: Tensor | None, n: int) -> Tensor:
    """(n,) float32 on the CPU: the frequencies, or ones, but 0 for the padding."""
    allowed = torch.ones(n)
    padding = special_token(model, ["pad"], n)
    if padding is not None and n > 1:
        allowed[padding] = 0  # some models count positions from the paddings they see
    frequencies = allowed if frequencies is None else frequencies.detach().float().cpu() * allowed
    return frequencies if frequencies.any() else allowed  # nothing but the padding was counted


def sequence_length(model: PreTrainedModel, most: int) -> int:
    """At most half of the positions that a model has, for some count them from an offset."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(most, limit // 2) if isinstance(limit, int) and limit > 1 else most


def draw_sequences(
    model: PreTrainedModel, frequencies: Tensor, shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """(sequences, length) token ids drawn from the frequencies (n,), between special tokens that the config knows."""
    count, length = shape
    ids = torch.multinomial(frequencies, count * length, True, generator=generator).view(shape)
    for column, names in ((0, ["cls", "bos"]), (-1, ["sep", "eos"])):
        token = special_token(model, names, len(frequencies))
        if token is not None and length > 2:
            ids[:, column] = token
    return ids


def model_inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """What the model is called with to read sequences (b, t)."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(0)  # other sequences than the encoder's, of the same kind
    if "state" in signature(model.forward).parameters:  # RWKV writes it in place, which gradients do not survive
        inputs["use_cache"] = False
    return inputs


def special_token(model: PreTrainedModel, names: list[str], n: int) -> int | None:
    """The first special token of these names that the config knows and the table has."""
    config = model.config.get_text_config()
    for name in names:
        token: Any = getattr(config, f"{name}_token_id", None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int) and 0 <= token < n:
            return token
    return None
