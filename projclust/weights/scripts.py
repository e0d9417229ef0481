"""Which script each token is written in, so that what is lost can be told by script."""

import unicodedata

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Of tokens without letters, and of rows without a token.
OTHER = "other"


def scripts_of_rows(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> tuple[Tensor, list[str]]:
    """(n_rows,) the number of each row's script, and the names of the scripts, the one with most rows first."""
    scripts = [OTHER] * n_rows
    rows = [row for row in tokenizer.get_vocab().values() if row < n_rows]
    fast = getattr(tokenizer, "backend_tokenizer", None)
    alone = [[row] for row in rows]
    texts = tokenizer.batch_decode(alone) if fast is None else fast.decode_batch(alone, skip_special_tokens=True)
    for row, text in zip(rows, texts, strict=True):
        scripts[row] = _script(text)
    names = sorted(set(scripts), key=lambda name: (-scripts.count(name), name))
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[name] for name in scripts]), names


def _script(text: str) -> str:
    """The script of a text's first letter, which is how its Unicode name begins: LATIN SMALL LETTER A."""
    for letter in text:
        if letter.isalpha():
            name = unicodedata.name(letter, OTHER).split(" ")[0]
            return {"CJK": "Han", OTHER: OTHER}.get(name, name.capitalize())
    return OTHER
