"""Random sequences of a model's own tokens: enough to measure what it notices, where no text is at hand."""

from collections.abc import Iterator
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


def possible_inputs(model: PreTrainedModel, ids: Tensor) -> Iterator[dict[str, Any]]:
    """What a model might be called with to read sequences (b, t), likeliest first: some take more than tokens.

    Sounds and images are noise.
    """
    tokens, count = model_inputs(model, ids), len(ids)
    yield tokens
    yield {name: values for name, values in tokens.items() if name != "attention_mask"}
    read = {"decoder_input_ids": ids}
    vision = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(vision, "image_size", 32), getattr(vision, "num_channels", 3)
    mels = getattr(model.config, "num_mel_bins", getattr(model.config, "input_feat_per_channel", 80))
    frames = 2 * getattr(model.config, "max_source_positions", 32)
    generator, side = torch.Generator().manual_seed(0), size if isinstance(size, int) else 32
    sound = torch.randn(count, mels, min(frames, 6000), generator=generator).to(ids.device)
    noise = {
        "pixel_values": torch.randn(count, channels, side, side, generator=generator).to(ids.device),
        "input_values": torch.randn(count, 4000, generator=generator).to(ids.device),
        "input_features": sound,
    }
    for name, values in noise.items():
        yield {name: values, **tokens}
        yield {name: values, **read}
    yield {"input_features": sound.transpose(1, 2), **read}
    yield {"bbox": torch.zeros(*ids.shape, 4, dtype=torch.long, device=ids.device), **tokens}


def special_token(model: PreTrainedModel, names: list[str], n: int) -> int | None:
    """The first special token of these names that the config knows and the table has."""
    config = model.config.get_text_config()
    for name in names:
        token: Any = getattr(config, f"{name}_token_id", None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int) and 0 <= token < n:
            return token
    return None
