from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase
from weights.tiny_tokenizers import byte_level, sentencepiece, wordpiece

from projclust.weights.scripts import scripts_of_rows

WORDS = ["the", "dog", "und", "дом", "犬", "ひ", "12", "!"]


def bytes_of(*words: str) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer, whose vocabulary spells bytes as letters of its own."""
    tokenizer = byte_level()
    spelled = [tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(word)[0][0] for word in words]
    return byte_level(*spelled)


@pytest.mark.parametrize("make", [wordpiece, sentencepiece, bytes_of])
def test_every_row_has_the_script_of_its_first_letter(make: Callable[..., PreTrainedTokenizerBase]) -> None:
    tokenizer = make(*WORDS)
    n_rows = max(tokenizer.get_vocab().values()) + 3
    numbers, names = scripts_of_rows(tokenizer, n_rows)
    found = [names[number] for number in numbers.tolist()]
    for word, script in zip(WORDS, ["Latin"] * 3 + ["Cyrillic", "Han", "Hiragana", "other", "other"], strict=True):
        (row,) = tokenizer(word, add_special_tokens=False).input_ids[-1:]
        assert found[row] == script
    assert found[-1] == "other"
    assert len(found) == n_rows
    counts = [found.count(name) for name in names]
    assert counts == sorted(counts, reverse=True)
