"""How often each token occurs, counted in real text."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import ProjclustError, ServiceError, is_out_of_reach
from projclust.weights.tally import BATCH, Tally, tokenize

# That many rows of a dataset are read: some millions of words, after which the frequencies hardly change.
_ROWS = 200_000


def text_frequencies(source: str, tokenizer: PreTrainedTokenizerBase, n_rows: int) -> Tensor:
    """Occurrences of each token per token of a text, special tokens included as the model gets them.

    The source is a UTF-8 file with a text in each line; or a dataset, as its folder or its name on the Hub, each
    followed by ``:CONFIG`` where it has several, of which the strings of the first 200,000 training rows are counted.
    The frequencies are float64 with a sum of about 1; what does not occur weighs half of one occurrence.
    """
    tally = Tally(tokenizer, n_rows)
    texts = (text for text in _texts(source) if text.strip())
    while batch := list(islice(texts, BATCH)):
        tally.add(tokenize(tokenizer, batch, special_tokens=True), [1.0] * len(batch))
    if tally.is_empty():
        raise ProjclustError(f"{source} holds no text that the vocabulary knows")
    return tally.sums.clamp(min=0.5) / tally.sums.sum()


def _texts(source: str) -> Iterator[str]:
    if os.path.isfile(source):
        return _lines(Path(source))
    name, _, config = source.partition(":")
    # Such names cannot be those of a dataset on the Hub, where they would be looked up in vain.
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".txt")):
        raise ProjclustError(f"there is no text file or dataset {source}")
    return _dataset_texts(source, name, config or None)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if "\0" in line:
                    raise ProjclustError(f"{path} is no text file")
                yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise ProjclustError(f"{path} is no UTF-8 text file") from None
    except OSError as error:
        raise ProjclustError(f"cannot read the text file {path}: {error.strerror}") from None


def _dataset_texts(source: str, name: str, config: str | None) -> Iterator[str]:
    from datasets import load_dataset  # slow to import, and needed for this alone

    try:
        rows: Any = load_dataset(name, config, split="train", streaming=True)
        for row in rows.take(_ROWS):
            yield from (value for value in row.values() if isinstance(value, str))
    except Exception as error:  # damaged files and a silent Hub raise many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = ServiceError if is_out_of_reach(error) else ProjclustError
        raise kind(f"cannot read the training rows of the dataset {source}: {reason}") from error
