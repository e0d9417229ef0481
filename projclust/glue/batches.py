"""Token ids in batches of rows of similar length, padded to the longest of each batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from projclust.glue.data import Rows

# Rows are shuffled, then sorted by length within so many batches: hardly any padding, yet batches differ each epoch.
BATCHES_PER_BUCKET = 50


@dataclass(frozen=True)
class EncodedRows(Dataset[dict[str, Any]]):
    """Tokenized rows: what the tokenizer gives for each (ids, sometimes token types), and the labels."""

    features: dict[str, list[list[int]]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, **{name: values[row] for name, values in self.features.items()}}

    def first(self, count: int) -> "EncodedRows":
        """The first rows, so many at most."""
        return EncodedRows({name: rows[:count] for name, rows in self.features.items()}, self.labels[:count])

    def lengths(self) -> list[int]:
        """How many tokens each row has."""
        return [len(ids) for ids in self.features["input_ids"]]


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRows:
    """Tokenize one or two texts a row, cut to `max_length` tokens together."""
    encoded = dict(tokenizer(*rows.texts, truncation=True, max_length=max_length, return_attention_mask=False))
    for row, ids in enumerate(encoded["input_ids"]):
        if not ids:  # an empty text, where the tokenizer adds no special tokens
            for name in encoded:
                encoded[name][row] = [tokenizer.pad_token_id if name == "input_ids" else 0]
    return EncodedRows(encoded, torch.tensor(rows.labels))


class ShuffledBatches(Sampler[list[int]]):
    """Batches of rows of similar length in another random order each epoch, the same for the same seed.

    With `parts`, each batch comes in so many pieces, one after the other, to accumulate gradients over.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, parts: int = 1) -> None:
        self.lengths = torch.tensor(lengths)
        self.rows_a_step = batch_size
        self.batch_size = batch_size // parts  # asked for by Accelerate
        self.drop_last = False  # asked for by Accelerate
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[Tensor] = []
        for bucket in order.split(BATCHES_PER_BUCKET * self.rows_a_step):
            batches += bucket[self.lengths[bucket].argsort(stable=True)].split(self.rows_a_step)
        # The batch that is not full stays last: Accelerate takes the last one for the one to fill up.
        full = torch.randperm(len(batches) - 1, generator=generator).tolist()
        for index in [*full, len(batches) - 1]:
            for piece in batches[index].split(self.batch_size):
                yield piece.tolist()


class SortedBatches(Sampler[list[int]]):
    """Batches of rows in order of length, every row once."""

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        self.batches = torch.tensor(lengths).argsort(stable=True).split(batch_size)
        self.batch_size = batch_size
        self.drop_last = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


def data_loader(
    rows: EncodedRows, batches: Sampler[list[int]], tokenizer: PreTrainedTokenizerBase
) -> DataLoader[dict[str, Tensor]]:
    """Load padded batches: "row" (the numbers of the rows), "labels", and what the model takes."""

    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        numbers = torch.tensor([sample["row"] for sample in samples])
        features = [{name: value for name, value in sample.items() if name != "row"} for sample in samples]
        padded = tokenizer.pad(features, padding=True, return_tensors="pt")
        return {"row": numbers, "labels": rows.labels[numbers], **padded}

    return DataLoader(rows, batch_sampler=batches, collate_fn=collate)
