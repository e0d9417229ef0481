"""How near a model with a rebuilt table comes to itself, on text of its own or random tokens; no data is needed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.errors import ProjclustError
from projclust.hf.generation import own_text_of
from projclust.hf.sequences import draw_sequences, model_inputs, sequence_length, token_frequencies
from projclust.hf.swap import input_embedding
from projclust.recipes.problem import Estimate

_SEQUENCES, _LENGTH, _BATCH = 64, 16, 16
# Sequences whose next-token distributions are compared: logits are as wide as the vocabulary.
_KL_SEQUENCES = 16
# Rows that are rebuilt at once.
_BLOCK_ROWS = 8192


@torch.no_grad()
def probe(
    model: PreTrainedModel,
    tables: Iterable[Estimate],
    frequencies: Tensor | None,
    seed: int,
    stage: Callable[[str], None],
) -> list[tuple[float | None, float | None]]:
    """How near the outputs of the model with each rebuilt table are to its own; it comes out unchanged.

    A generative model reads text that it made up, other than what its rows are weighed by. For others tokens stand in
    random sequences as often as `frequencies` (n,) say, by default all alike.

    Returns:
        for each table the mean over sequences of the cosine between the last hidden states' means over tokens; and the
        mean divergence of next-token distributions, for generative models whose output layer is tied to the embedding.
        Both are None for a table that is not rebuilt.
    """
    embedding = input_embedding(model)[1]
    n, device = len(embedding.weight), embedding.weight.device
    stage("probing the dense model")
    ids = _sequences(model, frequencies, n, seed).to(device)
    head = model.get_output_embeddings() if model.can_generate() else None
    tied = head is not None and head.weight is embedding.weight
    # No other rows matter where only the input reads the table.
    read = torch.arange(n, device=device) if tied else ids.unique()
    sentences, distributions = _outputs(model, ids, head if tied else None)
    found: list[tuple[float | None, float | None]] = []
    for table in tables:
        cosine, divergence = None, None
        if table.rebuild is not None:
            stage(f"probing {table.name}, {table.bytes:,} bytes")
            blocks = [read] if table.rebuilds_at_once else read.split(_BLOCK_ROWS)
            rows = torch.cat([table.rebuild(block) for block in blocks])
            with rows_replaced(embedding, read, rows):
                other, others = _outputs(model, ids, head if tied else None)
            cosine = float(torch.cosine_similarity(sentences, other).mean())
            if tied:
                pairs = zip(distributions, others, strict=True)
                divergence = float(torch.stack([(a.exp() * (a - b)).sum(-1).mean() for a, b in pairs]).mean().clamp(0))
        found.append((cosine, divergence))
        del table  # what it rebuilds, before the next one is made
    return found


def _sequences(model: PreTrainedModel, frequencies: Tensor | None, n: int, seed: int) -> Tensor:
    """(sequences, length) token ids."""
    shape = (_SEQUENCES, sequence_length(model, _LENGTH))
    if (own := own_text_of(model, seed + 1, shape)) is not None:
        with suppress(ProjclustError):
            return own().sequences
    draws = token_frequencies(model, frequencies, n)
    return draw_sequences(model, draws, shape, torch.Generator().manual_seed(seed))


def _outputs(model: PreTrainedModel, ids: Tensor, head: nn.Module | None) -> tuple[Tensor, list[Tensor]]:
    """(sequences, h) the mean of the last hidden states, and with an output layer log-probabilities of the first."""
    means, distributions = [], []
    for number, batch in enumerate(ids.split(_BATCH)):
        inputs = model_inputs(model, batch)
        means.append(model.base_model(**inputs)[0].float().mean(1))
        if head is not None and number * _BATCH < _KL_SEQUENCES:
            distributions.append(model(**inputs).logits.float().log_softmax(-1))
    return torch.cat(means), distributions


@contextmanager
def rows_replaced(embedding: nn.Embedding, ids: Tensor, rows: Tensor) -> Iterator[None]:
    """Other rows in the embedding, and in whatever is tied to it, inside."""
    weight = embedding.weight.data
    kept = weight[ids].clone()
    weight[ids] = rows.to(weight)
    try:
        yield
    finally:
        weight[ids] = kept
