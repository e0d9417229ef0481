"""Occurrences of each token, summed over tokenized texts."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import ProjclustError

# Texts tokenized in one call: fast tokenizers share a call among the cores.
BATCH = 8192
# Tokens of a sentence: what begins and ends a text occurs once in so many.
_SENTENCE = 20


class Tally:
    """Sums of occurrences, a row of the table each; those that no token has, as in padded tables, stay at zero."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, n_rows: int) -> None:
        self.sums = torch.zeros(n_rows, dtype=torch.float64)
        self._special = torch.tensor(tokenizer.all_special_ids, dtype=torch.int64)

    def add(self, texts: Sequence[Sequence[int]], rates: Sequence[float] | Tensor) -> None:
        """Add `rates[i]` to every occurrence of a token in `texts[i]`, a list of token ids."""
        lengths = torch.tensor([len(ids) for ids in texts], dtype=torch.int64)
        ids = torch.tensor(list(chain.from_iterable(texts)), dtype=torch.int64)
        each = torch.as_tensor(rates, dtype=torch.float64).repeat_interleave(lengths)
        inside = ids < len(self.sums)
        # Special tokens that were added to the tokenizer but not to the table do no harm; the model never sees them.
        outside = ids[~inside & ~torch.isin(ids, self._special)]
        if len(outside):
            raise ProjclustError(
                f"the tokenizer is not of this table: it gives row {int(outside.max())}, "
                f"but the table has {len(self.sums)} rows"
            )
        self.sums.index_add_(0, ids[inside], each[inside])

    def is_empty(self) -> bool:
        """Whether no token was met but special ones, as that for what is unknown."""
        ordinary = ~torch.isin(torch.arange(len(self.sums)), self._special)
        return not self.sums[ordinary].any()


def with_ends(sums: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Occurrences, (n,), and those of the tokens that begin and end a text."""
    ends = {tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id}
    found = sums.clone()
    for row in ends:
        if row is not None and row < len(sums):
            found[row] += sums.sum() / _SENTENCE
    return found


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
    """The token ids of each text, of any length."""
    try:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is not None:  # the same without what transformers wraps around it: half of the time
            fast.no_truncation()
            fast.no_padding()
            return [text.ids for text in fast.encode_batch_fast(list(texts), add_special_tokens=special_tokens)]
        encoded = tokenizer(
            list(texts),
            add_special_tokens=special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # about texts longer than the model takes
        )
    except Exception as error:  # nothing more specific, as where a vocabulary lacks its own token for what is unknown
        raise ProjclustError(f"the model's tokenizer fails: {' '.join(str(error).split())}") from error
    return list(encoded["input_ids"])
