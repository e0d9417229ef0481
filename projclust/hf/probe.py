"""How near a model with a rebuilt table comes to itself, on text of its own or random tokens; no data is needed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.errors import OptionError, ProjclustError
from projclust.hf.generation import own_text_of
from projclust.hf.sequences import draw_sequences, model_inputs, sequence_length, token_frequencies
from projclust.hf.swap import input_embedding
from projclust.recipes.problem import Estimate

_SEQUENCES, _LENGTH, _BATCH = 64, 16, 16
# Sequences whose next-token distributions are compared: logits are as wide as the vocabulary.
_KL_SEQUENCES = 16
# Rows that are rebuilt at once.
_BLOCK_ROWS = 8192


class Outputs(NamedTuple):
    """How near the outputs of a model are to those of another one with the same tokens.

    Attributes:
        cosine: the mean over sequences of the cosine between the last hidden states' means over tokens.
        kl: the mean divergence of next-token distributions, for generative models whose output layer is tied to the
            embedding; None for others.
    """

    cosine: float
    kl: float | None


class Probe:
    """What a model says of text, before anything is done to it.

    A generative model reads text that it made up, other than what its rows are weighed by. For others tokens stand in
    random sequences as often as `frequencies` (n,) say, by default all alike.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, frequencies: Tensor | None, seed: int) -> None:
        """See the class.

        Raises:
            OptionError: the model takes more than tokens.
        """
        self.model, self.embedding = model, input_embedding(model)[1]
        n, device = len(self.embedding.weight), self.embedding.weight.device
        self.ids = _sequences(model, frequencies, n, seed).to(device)
        head = model.get_output_embeddings() if model.can_generate() else None
        self.is_tied = head is not None and head.weight is self.embedding.weight
        # No other rows matter where only the input reads the table.
        self.read = torch.arange(n, device=device) if self.is_tied else self.ids.unique()
        try:
            self.sentences, self.distributions = _outputs(model, self.ids, self.is_tied)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise OptionError(
                f"what the model says of tokens cannot be told: {' '.join(str(error).split())}"
            ) from error

    def outputs(self, rows: Tensor) -> Outputs:
        """How near the model's outputs are with these rows (N, d) in place of those that are read; it comes out as it
        went in."""
        with rows_replaced(self.embedding, self.read, rows):
            return self.outputs_now()

    @torch.no_grad()
    def outputs_now(self) -> Outputs:
        """How near the outputs are of the model as it is meanwhile."""
        other, others = _outputs(self.model, self.ids, self.is_tied)
        cosine = float(torch.cosine_similarity(self.sentences, other).mean())
        if not self.is_tied:
            return Outputs(cosine, None)
        kl = torch.stack(list(map(_divergence, self.distributions, others))).mean().clamp(0)
        return Outputs(cosine, float(kl))

    @torch.no_grad()
    def rows(self, table: Estimate) -> Tensor:
        """The rows that are read of a table that can be rebuilt."""
        assert table.rebuild is not None
        if table.rebuilds_at_once:
            return table.rebuild(self.read)
        rows = self.embedding.weight.new_empty(len(self.read), self.embedding.embedding_dim)
        for block, into in zip(self.read.split(_BLOCK_ROWS), rows.split(_BLOCK_ROWS), strict=True):
            into.copy_(table.rebuild(block))
        return rows


def probe(
    model: PreTrainedModel,
    tables: Iterable[Estimate],
    frequencies: Tensor | None,
    seed: int,
    stage: Callable[[str], None],
) -> list[Outputs | None]:
    """How near the outputs of the model with each rebuilt table are to its own; see `Probe`.

    None stands for a table that is not rebuilt.
    """
    stage("probing the dense model")
    dense = Probe(model, frequencies, seed)
    found: list[Outputs | None] = []
    for table in tables:
        if table.rebuild is None:
            found.append(None)
        else:
            stage(f"probing {table.name}, {table.bytes:,} bytes")
            found.append(dense.outputs(dense.rows(table)))
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


def _outputs(model: PreTrainedModel, ids: Tensor, with_logits: bool) -> tuple[Tensor, list[Tensor]]:
    """(sequences, h) the mean of the last hidden states, and perhaps the log-probabilities of the first ones."""
    means, distributions = [], []
    for number, batch in enumerate(ids.split(_BATCH)):
        inputs = model_inputs(model, batch)
        means.append(model.base_model(**inputs)[0].float().mean(1))
        if with_logits and number * _BATCH < _KL_SEQUENCES:
            distributions.append(model(**inputs).logits.float().log_softmax(-1))
    return torch.cat(means), distributions


def _divergence(ours: Tensor, other: Tensor) -> Tensor:
    """The mean divergence of distributions (sequences, length, n), given as logarithms, sequence by sequence."""
    return torch.stack([(a.exp() * (a - b)).sum(-1) for a, b in zip(ours, other, strict=True)]).mean()


@contextmanager
def rows_replaced(embedding: nn.Embedding, ids: Tensor, rows: Tensor) -> Iterator[None]:
    """Other rows in the embedding, of these distinct numbers, and in whatever is tied to it, inside.

    The two change places: meanwhile `rows`, where they have the embedding's dtype, hold what was there.
    """
    weight = embedding.weight.data
    rows = rows.to(weight)

    def exchange() -> None:
        for block, others in zip(ids.split(_BLOCK_ROWS), rows.split(_BLOCK_ROWS), strict=True):
            kept = weight[block]
            weight[block] = others
            others.copy_(kept)

    exchange()
    try:
        yield
    finally:
        exchange()
