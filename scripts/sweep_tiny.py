"""Tiny random models of any class of transformers, built from its configuration alone."""

import re
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from projclust.hf.sequences import possible_inputs
from projclust.hf.twin import first_output

VOCABULARY, LENGTH = 160, 10
# The most parameters of a tiny model.
_MOST = 40_000_000
_ROWS = 2


class Size(NamedTuple):
    """How small: the width, heads and layers; without a width, that of the configuration."""

    width: int | None
    heads: int
    layers: int


# The first with which the model runs: some must have more layers to have one of each kind, others wider heads.
_SIZES = (Size(64, 4, 2), Size(64, 4, 4), Size(64, 2, 8), Size(128, 2, 2), Size(256, 2, 2), Size(None, 0, 2))

# Settings by what they are, each with the pattern of its names: the first that matches.
_SETTINGS = (
    ("vocabulary", r"vocab_size$|^vocab_size_per_layer|^n_token|^vocabulary_size"),
    (
        "pair",
        r"(kv|key_value)_heads$|experts_per_tok(en)?$|^moe_(topk|k)$|num_selected_experts$|top_k_experts$|^router_top_k$",
    ),
    ("one", r"^n_group$|^topk_group$|^moe_n_groups?$|^num_expert_group$"),
    ("experts", r"experts$"),
    ("heads", r"heads$|^n_head$|^num_heads_"),
    ("head", r"head_dim$|^d_kv$|^kv_channels$|^d_head$|^rotary_dim$"),
    ("rank", r"lora_rank$|state_size$|^mamba_d_state$"),
    ("layers", r"^n_layers?$|layers?$|^num_hidden_layers_|depth$"),
    ("width", r"intermediate_size|ffn_dim$|^n_inner$|^d_ff$|^hidden_dim$|^d_inner$|ffn_hidden_size|shared_expert_dim"),
    ("width", r"hidden_size$|^d_model$|^n_embd$|^dim$|embed_dim$|embedding_size$|^d_embed|^emb_dim$|projection_dim$"),
    ("length", r"position_embeddings$|^n_positions$|^n_ctx$|seq_len(gth)?$|(source|target)_positions$|max_length$"),
    ("window", r"^sliding_window$|^attention_window$|^block_size$|^local_attn_chunk_length$"),
)


# What a few types must have beside that.
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4, "pad_token_id": 1},
    "nemotron": {"num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
}


def build(
    kind: type[PreTrainedModel], config_class: type[PretrainedConfig]
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model in evaluation mode with random parameters, and inputs that it runs with.

    Raises:
        NoTokens: the class has no token embedding.
        ValueError: none of the sizes makes a model that runs.
    """
    errors: list[str] = []
    for size in _SIZES:
        try:
            torch.manual_seed(0)
            config = config_class(**_settings(config_class, size))
            with torch.device("meta"):
                hollow = kind._from_config(config)
            if not has_tokens(hollow):
                raise NoTokens(f"{kind.__name__} has no token embedding")
            parameters = sum(parameter.numel() for parameter in hollow.parameters())
            if parameters > _MOST:
                raise ValueError(f"{parameters:,} parameters with {size.layers} layers")
            model = kind._from_config(config).eval().float()
            inputs = inputs_of(model)
        except NoTokens:
            raise
        except Exception as error:  # whatever a configuration of our making leads to
            errors.append(short(error))
        else:
            return model, inputs
    raise ValueError(errors[0])


def short(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class NoTokens(ValueError):
    """A model reads no tokens."""


def has_tokens(model: PreTrainedModel) -> bool:
    """Whether a model looks tokens up in an embedding."""
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    return isinstance(found, nn.Embedding)


def _settings(config_class: type[PretrainedConfig], size: Size) -> dict[str, Any]:
    small = {"vocabulary": VOCABULARY, "layers": size.layers}
    if size.width is not None:
        small |= {"pair": 2, "one": 1, "experts": 4, "heads": size.heads, "head": size.width // size.heads, "rank": 16}
        small |= {"width": size.width, "length": 64, "window": 8}
    settings: dict[str, Any] = {}
    for name, value in vars(config_class()).items():
        what = next((what for what, pattern in _SETTINGS if re.search(pattern, name)), "")
        if isinstance(value, PretrainedConfig):
            settings[name] = _settings(type(value), size) | {"model_type": value.model_type}
        elif name.startswith("_") or type(value) is not int:
            continue
        elif re.search(r"token(_id|_index)$|_token_id_|^image_token|_start_token", name):
            # Tokens of their own, lest one is taken for another.
            settings[name] = value if value < 20 else 100 + sum(map(ord, name)) % 50
        elif what in small and value > 0:
            settings[name] = min(small[what], value)
    return settings | _OWN.get(config_class.model_type, {})


def inputs_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs that the model runs with."""
    ids = torch.randint(20, 90, (_ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    first = ""
    for inputs in possible_inputs(model, ids):
        try:
            output(model, inputs)
        except Exception as error:
            first = first or short(error)
        else:
            return inputs
    raise ValueError(f"it does not run: {first}")


def output(model: PreTrainedModel, inputs: dict[str, Tensor], no_grad: bool = True) -> Tensor:
    """The first floats that the model answers with, logits or hidden states, in the mode that it is in."""
    if no_grad:
        return first_output(model, inputs)
    torch.manual_seed(2)
    answer = model(**inputs)
    values = answer.values() if isinstance(answer, dict) else answer
    return next(value for value in values if isinstance(value, Tensor) and value.requires_grad and value.dim() > 1)


def classes() -> list[tuple[str, str]]:
    """(class, configuration class) of every model that reads, writes or embeds text, each once, by name."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found: dict[str, str] = {}
    for mapping in _MAPPINGS:
        for model_type, names in getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").items():
            for name in [names] if isinstance(names, str) else names:
                if model_type in CONFIG_MAPPING_NAMES and hasattr(hf, name):
                    found.setdefault(name, CONFIG_MAPPING_NAMES[model_type])
    return sorted(found.items())


_MAPPINGS = (
    *("MODEL", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_MASKED_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_PRETRAINING"),
    *("MODEL_FOR_MULTIMODAL_LM", "MODEL_FOR_SPEECH_SEQ_2_SEQ", "MODEL_FOR_TEXT_ENCODING", "MODEL_FOR_RETRIEVAL"),
    *("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION", "MODEL_FOR_VISUAL_QUESTION_ANSWERING", "MODEL_FOR_TEXT_TO_WAVEFORM"),
)
