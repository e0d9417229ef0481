"""Tiny randomly initialised models of the classes projclust supports."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from projclust import compress_model

VOCABULARY = 120
WIDTH = 16

_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
_DECODER: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def _modernbert() -> PreTrainedModel:
    # Two layers, for it must have both kinds of attention.
    shape = {**_ENCODER, **_SPECIAL, "num_hidden_layers": 2}
    return hf.ModernBertForMaskedLM(hf.ModernBertConfig(**shape, cls_token_id=1, sep_token_id=2))


def _distilbert() -> PreTrainedModel:
    shape = {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}
    return hf.DistilBertForMaskedLM(hf.DistilBertConfig(vocab_size=VOCABULARY, **shape))


def _gpt2() -> PreTrainedModel:
    shape = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 40}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **shape))


def _bart() -> PreTrainedModel:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = hf.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, max_position_embeddings=40, scale_embedding=True, **sides
    )
    return hf.BartForConditionalGeneration(config)


def _factorised(kind: type, config: type) -> Callable[[], PreTrainedModel]:
    """ALBERT and ELECTRA: the embedding is narrower than the hidden state."""
    return lambda: kind(config(**{**_ENCODER, "hidden_size": 24}, embedding_size=WIDTH))


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "distilbert": _distilbert,
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**_ENCODER)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**_ENCODER)),
    "xlm-roberta": lambda: hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**_ENCODER)),
    "mpnet": lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**_ENCODER)),
    "modernbert": _modernbert,
    "gpt2": _gpt2,
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_DECODER)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_DECODER, tie_word_embeddings=True)),
    "albert": _factorised(hf.AlbertForMaskedLM, hf.AlbertConfig),
    "electra": _factorised(hf.ElectraForMaskedLM, hf.ElectraConfig),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)),
    "bart": _bart,
    "llama-untied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER, tie_word_embeddings=False)),
    "deberta-v2": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**_ENCODER)),
}
ENCODER_DECODERS = ("t5", "bart")
CAUSAL = ("gpt2", "gemma3", "qwen3", "llama-untied")


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model in evaluation mode with every parameter, biases included, away from its initial value."""
    torch.manual_seed(seed)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def uneven_model(name: str) -> PreTrainedModel:
    """`tiny_model(name)` with a table that wants unequal ranks: half of the rows lie near a plane."""
    model = tiny_model(name)
    near = VOCABULARY // 2
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, WIDTH, generator=generator)
    plane = torch.randn(2, WIDTH, generator=generator)
    table[:near] = 3 * torch.randn(near, 2, generator=generator) @ plane + 0.01 * table[:near]
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(0.1 * table)
    return model


# Ways to compress `tiny_model`, or `uneven_model` where ranks are unequal, by a name for parametrised tests.
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "equal": {"k": 3, "j": 5},
    "equal affine": {"k": 3, "j": 5, "affine": True},
    "adaptive": {"k": 3, "j": 5, "ranks": "adaptive"},
    "adaptive affine": {"k": 3, "j": 5, "ranks": "adaptive", "affine": True},
    "auto": {"bits": 6.0, "metric": "none"},
    "int8": {"k": 3, "j": 5, "codes": "int8"},
    "int4": {"k": 3, "j": 5, "codes": "int4", "affine": True},
}
CODED = ("auto", "int8", "int4")


def compressed_model(name: str, how: str) -> PreTrainedModel:
    """A tiny model compressed in one of these ways."""
    model = uneven_model(name) if "adaptive" in how else tiny_model(name)
    return compress_model(model, **COMPRESSIONS[how])


def inputs_for(name: str) -> dict[str, Tensor]:
    """A batch for `tiny_model(name)`."""
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if name in ENCODER_DECODERS else {})}


@torch.no_grad()
def logits(model: PreTrainedModel, name: str) -> Tensor:
    """What the model makes of `inputs_for(name)`."""
    result: Tensor = model(**inputs_for(name))[0]
    return result
