import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import wordfreq
from transformers import PreTrainedTokenizerBase
from weights.tiny_tokenizers import byte_level, sentencepiece, wordpiece

from projclust import ProjclustError
from projclust.checkpoints.load import load_tokenizer
from projclust.weights.wordfreq import word_frequencies, word_weights

Dictionary = Callable[..., None]
Frequency = Callable[[str], float]


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> Dictionary:
    """Sets the words of every language, or by their codes."""

    def use(words: dict[str, float], **by_language: dict[str, float]) -> None:
        monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda code, wordlist: by_language.get(code, words))

    return use


def by_token(tokenizer: PreTrainedTokenizerBase, *languages: str) -> Frequency:
    frequencies = word_frequencies(tokenizer, len(tokenizer), languages or ("en",)).tolist()
    vocabulary = tokenizer.get_vocab()
    return lambda token: frequencies[vocabulary[token]]


def test_words_share_their_frequency_with_their_tokens(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5, "cats": 0.2, "cat": 0.2, "ss": 0.05, "dog": 0.05})
    of = by_token(wordpiece("the", "cat", "##s", "s", "dog", "bird", ","))
    assert of("cat") == pytest.approx(0.8 * of("the"))
    assert of("##s") == pytest.approx((0.2 + 0.05) / 0.5 * of("the"))
    assert of("s") == pytest.approx(of("dog")) == pytest.approx(0.1 * of("the"))
    # What is never met, and the special tokens that do not stand in text, weigh half of the rarest word.
    assert of("bird") == of("[PAD]") == of("[MASK]") == pytest.approx(of("dog") / 2)
    # 1.25 tokens of words and the marks in each word of text, and both ends in 20 of them.
    assert of(",") == pytest.approx(0.0605 * of("the") / 0.5)
    assert of("[CLS]") == of("[SEP]") == pytest.approx((1 / 20) / (1 + 2 / 20))


def test_every_occurrence_counts(dictionary: Dictionary) -> None:
    dictionary({"xaa": 0.3, "x": 0.1})
    of = by_token(wordpiece("x", "##a"))
    assert of("##a") == pytest.approx(0.6 / 0.4 * of("x"))


def test_cased_wordpiece(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5, "paris": 0.2, "nato": 0.1, "qq": 1e-6})
    of = by_token(wordpiece("the", "The", "Paris", "NATO", "nat", "##o", "pari", "##s", lower=False))
    assert of("The") == pytest.approx(0.1 / 0.9 * of("the"))
    assert of("Paris") == pytest.approx(0.4 * of("the"))  # one token with a capital: mostly written so
    assert of("NATO") == pytest.approx(0.2 * of("the"))
    assert of("##s") == of("pari") == pytest.approx(0.2 * 0.1 / (0.5 * 0.9) * of("the"))


def test_byte_level_tells_a_word_after_a_space_from_others(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5, "cat": 0.2, "qq": 1e-6})
    of = by_token(byte_level("Ġthe", "the", "ĠThe", "Ġcat", "ca"))
    # After a space 90 % in lower case; the 10 % that follow a bracket are in the usual case.
    assert of("ĠThe") == pytest.approx(0.1 / 0.9 * of("Ġthe"))
    assert of("the") == pytest.approx(0.1 / (0.9 * 0.9) * of("Ġthe"))
    assert of("Ġcat") == pytest.approx(0.4 * of("Ġthe"))
    assert of("ca") == pytest.approx(0.4 * of("the"))
    assert of(",") > 50 * of(";") / 3 > 0
    assert of("Ċ") > of("Z")
    assert of("<end>") == pytest.approx((1 / 20) / (1 + 1 / 20))


def test_sentencepiece(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5, "cat": 0.2, "cats": 0.1, "qq": 1e-6})
    of = by_token(sentencepiece("▁the", "▁cat", "the", "s", "▁", ",", "a", "▁a"))
    assert of("▁cat") == pytest.approx(0.6 * of("▁the"))
    assert of("the") == pytest.approx(0.1 / (0.9 * 0.9) * of("▁the"))
    assert of("▁the") > 3 * of("a")  # no word "a" here, although words are tokenized after one
    assert of("</s>") == pytest.approx((1 / 20) / (1 + 1 / 20))


def test_languages_count_alike_and_may_lack_spaces(dictionary: Dictionary) -> None:
    dictionary({}, en={"the": 0.5}, de={"der": 0.4}, ja={"neko": 0.5})
    of = by_token(wordpiece("the", "der", "neko"), "en", "de", "en")
    assert of("der") == pytest.approx(0.8 * of("the"))
    assert of("neko") == pytest.approx(of("der") / 2)
    of = by_token(byte_level("Ġneko", "neko", "Ġthe"), "ja")
    assert of("Ġneko") == of("Ġthe") == pytest.approx(of("neko") / 2)  # the least that a token weighs


def test_numbers_get_digits(dictionary: Dictionary) -> None:
    digits = [f"##{digit}" for digit in range(10)]
    dictionary({"the": 0.5, "00": 0.1, "0": 0.01, "qq": 1e-6})
    of = by_token(wordpiece("the", *"0123456789", *digits))
    first = [of(str(digit)) for digit in range(10)]
    # Small first digits are more frequent, and so are round numbers.
    assert first[1:] == sorted(first[1:], reverse=True)
    assert sum(first) == pytest.approx((0.1 + 0.01) / 0.5 * of("the"))
    assert sum(map(of, digits)) == pytest.approx(0.1 / 0.5 * of("the"))
    assert of("##0") == pytest.approx(5 * of("##7"), rel=0.01)


def test_years_and_decades(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5, "0000": 0.01, "0000s": 0.01, "ps4": 0.001, "qq": 1e-7})
    of = by_token(wordpiece("the", "1987", "1234", "1990s", "1991s", "ps4", "ps0"))
    assert of("1987") > 100 * of("1234")
    assert of("1990s") > 1000 * of("1991s")
    assert of("ps4") == pytest.approx(0.002 * of("the"))


def test_minilm(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    frequencies = word_frequencies(tokenizer, 30522)
    of = dict(zip(tokenizer.convert_ids_to_tokens(range(30522)), frequencies.tolist(), strict=True))
    assert frequencies.shape == (30522,)
    assert frequencies.dtype == torch.float64
    assert frequencies.min() > 0
    assert sum(of.values()) == pytest.approx(1, abs=0.001)
    # Within a factor of three of what real English text has.
    for token, expected in {
        "the": 0.042,
        "[CLS]": 0.05,
        ",": 0.03,
        ".": 0.035,
        "'": 0.012,
        "1": 0.0006,
        "100": 1e-4,
    }.items():
        assert expected / 3 < of[token] < expected * 3, token
    assert of["the"] > 100 * of["river"] > 10_000 * of["[unused7]"]
    assert of["[PAD]"] == of["[MASK]"] == of["[unused7]"] == frequencies.min()


def test_another_language_and_the_same_each_time(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    first, second = (word_frequencies(tokenizer, 30522, ["fil"]) for _ in range(2))
    assert torch.equal(first, second)
    ng, the = tokenizer.convert_tokens_to_ids(["ng", "the"])
    assert first[ng] > 3 * first[the]


def test_padded_rows_weigh_little_and_missing_ones_are_a_mistake(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5, "cat": 0.1})
    tokenizer = wordpiece("the", "cat")
    frequencies = word_frequencies(tokenizer, 10)
    assert frequencies[7:].tolist() == [pytest.approx(float(frequencies[6]) / 2)] * 3
    with pytest.raises(ProjclustError, match="gives row 6, but the table has 6 rows"):
        word_frequencies(tokenizer, 6)
    # Special tokens that have no row are no part of words.
    tokenizer.add_special_tokens({"eos_token": "<late>"})
    assert word_frequencies(tokenizer, 7).min() > 0


def test_wrong_languages(dictionary: Dictionary) -> None:
    tokenizer = wordpiece("the")
    for languages in (["xx"], ["en", ""], ["en", "klingon"]):
        with pytest.raises(ProjclustError, match=f"no language {languages[-1]!r}: use a code such as en, de"):
            word_frequencies(tokenizer, 6, languages)
    with pytest.raises(ProjclustError, match="at least one"):
        word_frequencies(tokenizer, 6, [])


def test_all_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def words(code: str, wordlist: str) -> dict[str, float]:
        asked.append(code)
        return {"the": 0.5}

    monkeypatch.setattr(wordfreq, "get_frequency_dict", words)
    word_frequencies(wordpiece("the"), 6, ["all"])
    assert asked == sorted(wordfreq.available_languages("large"))
    assert len(asked) > 15


def test_a_vocabulary_without_words(dictionary: Dictionary) -> None:
    dictionary({"the": 0.5})
    with pytest.raises(ProjclustError, match="knows no word of en, de"):
        word_frequencies(wordpiece("mot"), 6, ["en", "de"])


def test_without_wordfreq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(ProjclustError, match="pip install wordfreq"):
        word_frequencies(wordpiece("the"), 6)


def test_an_impossible_exponent_is_refused_before_words_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda code, wordlist: pytest.fail("words were read"))
    with pytest.raises(ProjclustError, match="greater than 0"):
        word_weights(wordpiece("the"), 6, exponent=-1.0)
