"""How near a model with a rebuilt table comes to itself, on random sequences of its own tokens; no data is needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.hf.swap import input_embedding

from .plan_recipes import Recipe

_SEQUENCES, _LENGTH, _BATCH = 64, 16, 16
# Sequences whose next-token distributions are compared: logits are as wide as the vocabulary.
_KL_SEQUENCES = 16
# Rows that are rebuilt at once.
_BLOCK_ROWS = 8192


@torch.no_grad()
def probe(
    model: PreTrainedModel,
    recipes: Sequence[Recipe],
    frequencies: Tensor | None,
    seed: int,
    stage: Callable[[str], None],
) -> list[dict[str, float | None]]:
    """How near the outputs of the model with each rebuilt table are to its own, on random sequences.

    "cosine" is the mean over sequences, of the last hidden states' means over tokens; "kl" that of next-token
    distributions, for generative models whose output layer is tied to the embedding.

    Args:
        model: with its own table; it comes out unchanged.
        recipes: rebuilt tables.
        frequencies: (n,) of the tokens of the sequences; None: all alike.
        seed: of the sequences.
        stage: called with what begins.
    """
    embedding = input_embedding(model)[1]
    n, device = len(embedding.weight), embedding.weight.device
    ids = _sequences(model, frequencies, n, seed).to(device)
    head = model.get_output_embeddings() if model.can_generate() else None
    tied = head is not None and head.weight is embedding.weight
    # Of a table that only the input reads no other rows matter.
    read = torch.arange(n, device=device) if tied else ids.unique()
    stage("probing the dense model")
    sentences, distributions = _outputs(model, ids, head if tied else None)
    found: list[dict[str, float | None]] = []
    for recipe in recipes:
        cosine, divergence = None, None
        if recipe.rebuild is not None:
            stage(f"probing {recipe.name}, {recipe.bytes:,} bytes")
            blocks = [read] if recipe.rebuilds_at_once else read.split(_BLOCK_ROWS)
            rows = torch.cat([recipe.rebuild(block) for block in blocks])
            with _rows_replaced(embedding, read, rows):
                other, others = _outputs(model, ids, head if tied else None)
            cosine = float(torch.cosine_similarity(sentences, other).mean())
            if tied:
                pairs = zip(distributions, others, strict=True)
                divergence = float(torch.stack([(a.exp() * (a - b)).sum(-1).mean() for a, b in pairs]).mean().clamp(0))
        found.append({"cosine": cosine, "kl": divergence})
    return found


def _sequences(model: PreTrainedModel, frequencies: Tensor | None, n: int, seed: int) -> Tensor:
    """(sequences, length) token ids drawn from the frequencies, between the special tokens that the config knows."""
    config = model.config
    draws = torch.ones(n) if frequencies is None else frequencies.float().clone()
    specials = {name: getattr(config, f"{name}_token_id", None) for name in ("pad", "cls", "bos", "sep", "eos")}
    numbers = {name: token for name, token in specials.items() if isinstance(token, int) and 0 <= token < n}
    if "pad" in numbers and n > 1:
        draws[numbers["pad"]] = 0  # some models count positions from the paddings they see
    limit = getattr(config, "max_position_embeddings", None)
    length = min(_LENGTH, limit // 2) if isinstance(limit, int) and limit > 1 else _LENGTH
    generator = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(draws, _SEQUENCES * length, True, generator=generator).view(_SEQUENCES, length)
    for column, names in ((0, ("cls", "bos")), (-1, ("sep", "eos"))):
        ends = [numbers[name] for name in names if name in numbers]
        if ends and length > 2:
            ids[:, column] = ends[0]
    return ids


def _outputs(model: PreTrainedModel, ids: Tensor, head: nn.Module | None) -> tuple[Tensor, list[Tensor]]:
    """(sequences, h) the mean of the last hidden states, and with an output layer log-probabilities of the first."""
    means, distributions = [], []
    for number, batch in enumerate(ids.split(_BATCH)):
        inputs = {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = batch.flip(0)
        means.append(model.base_model(**inputs)[0].float().mean(1))
        if head is not None and number * _BATCH < _KL_SEQUENCES:
            distributions.append(model(**inputs).logits.float().log_softmax(-1))
    return torch.cat(means), distributions


@contextmanager
def _rows_replaced(embedding: nn.Embedding, ids: Tensor, rows: Tensor) -> Iterator[None]:
    """Other rows in the embedding, and in whatever is tied to it, inside."""
    weight = embedding.weight.data
    kept = weight[ids].clone()
    weight[ids] = rows.to(weight)
    try:
        yield
    finally:
        weight[ids] = kept
