"""How often each token occurs, as far as the tokenizer itself tells; no text and no dictionary is needed."""

import json
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import ProjclustError
from projclust.weights.tally import with_ends

# G. K. Zipf's law, shifted as B. Mandelbrot proposed for the most frequent words: 1 / (rank + 2.7).
_SHIFT = 2.7
# Single characters stand in a vocabulary because they exist, not because they are frequent. Each counts like the token
# with this share of the ranks before it: letters and marks of ASCII, and others.
_ASCII, _CHARACTERS = 0.003, 0.3


def tokenizer_frequencies(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> Tensor:
    """(n_rows,) float64 above 0 with a sum of 1: the occurrences of each token per token of what trained the tokenizer.

    A Unigram tokenizer stores the logarithm of every piece's probability (Kudo, "Subword regularization", 2018). Other
    kinds store tokens in the order in which they were found: frequent ones first, so that the frequency follows from
    the rank by Zipf's law. Bytes, unused tokens and rows without a token count like the rarest one.

    Raises:
        ProjclustError: the tokenizer has tokens without a row, or nothing but special tokens.
    """
    rows = {row: token for token, row in tokenizer.get_vocab().items()}
    special, added = set(tokenizer.all_special_ids), set(tokenizer.get_added_vocab().values())
    outside = [row for row in rows if row >= n_rows and row not in special]
    if outside:
        raise ProjclustError(
            f"the tokenizer is not of this table: it has row {max(outside)}, but the table has {n_rows} rows"
        )
    ordinary = [row for row in sorted(rows) if row not in special | added and not _never_met(rows[row])]
    if not ordinary:
        raise ProjclustError("the model's tokenizer has no ordinary tokens")
    places = torch.tensor(ordinary)
    scores = _scores(tokenizer)
    if scores is None:
        found = _by_rank([rows[row] for row in ordinary])
    else:
        logarithms = torch.tensor([scores[row] for row in ordinary], dtype=torch.float64)
        found = (logarithms - logarithms.max()).exp()
    frequencies = torch.full((n_rows,), float(found.min()), dtype=torch.float64)
    frequencies[places] = found
    # Whoever adds tokens uses them: as much as the average one.
    frequencies[[row for row in added - special if row < n_rows]] = float(found.mean())
    occurrences = with_ends(frequencies, tokenizer)
    return occurrences / occurrences.sum()


def _scores(tokenizer: PreTrainedTokenizerBase) -> list[float] | None:
    """The logarithms of the probabilities by row; None where the tokenizer has none."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    model: dict[str, Any] = {} if fast is None else json.loads(fast.to_str())["model"]
    if model.get("type") != "Unigram":
        return None
    return [float(score) for _, score in model["vocab"]]


def _by_rank(tokens: list[str]) -> Tensor:
    """(n,) what is proportional to the frequencies of tokens in the order of the vocabulary."""
    ranks, ordinary = [], 0
    for token in tokens:
        if len(token.removeprefix("##")) == 1:
            ranks.append(len(tokens) * (_ASCII if token.isascii() and len(token) == 1 else _CHARACTERS))
        else:
            ranks.append(float(ordinary))
            ordinary += 1
    return 1 / (torch.tensor(ranks, dtype=torch.float64) + _SHIFT)


def _never_met(token: str) -> bool:
    """Whether a token stands for a single byte that no character needs, or for what may once be added."""
    return (len(token) == 6 and token.startswith("<0x")) or ("unused" in token and token[0] in "[<")
