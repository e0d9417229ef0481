"""How often each token occurs in running text, estimated from dictionaries of word frequencies; no text is needed."""

import json
import math
import re
from collections.abc import Sequence
from itertools import islice, product
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import ProjclustError
from projclust.weights.importance import row_weights
from projclust.weights.languages import UNSPACED
from projclust.weights.names import DEFAULT_EXPONENT, check_exponent
from projclust.weights.tally import BATCH, Tally, tokenize, with_ends

ALL_LANGUAGES = "all"

# That many words are read, of several dictionaries together, but some of each; rarer ones add next to nothing.
_WORDS, _LEAST_WORDS = 200_000, 10_000
# Most words follow a space; the others an opening bracket, a quotation mark, a hyphen or a line break.
_AFTER_SPACE = 0.9
# Dictionaries are in lower case. This share of a word's occurrences begins a sentence or stands in a title; where a
# word is mostly written with capitals, it is the share that is not.
_OTHER_CASE = 0.1
# What stands before a word. Tokenizers of the SentencePiece kind see no difference between a space and nothing.
_AFTER_WORD, _AFTER_BRACKET = "a ", "("

# By language code and for all of them: how often each mark is attached to the word before, and how often it follows a
# space, per word of running text. The file says where that is from.
_MARKS: dict[str, dict[str, tuple[float, float]]] = json.loads(
    Path(__file__).with_name("marks.json").read_text(encoding="utf-8")
)

# wordfreq keeps numbers of one form as one word with zeros for digits: 1984 is in "0000", 3.5 in "0.0".
_NUMBER = re.compile(r"\d[\d.,]+")
# All numbers of a form at least this frequent are tried, else round ones and ten others.
_COMMON_NUMBER = 1e-5
# How much more frequent a number is for each zero at its end; years are not.
_ROUND = 5
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")


def word_frequencies(tokenizer: PreTrainedTokenizerBase, n_rows: int, languages: Sequence[str] = ("en",)) -> Tensor:
    """Expected occurrences of each token per token of running text, from the dictionaries of `wordfreq`.

    The words are cut by the model's own tokenizer, in the forms in which they stand in text: after a space or not, and
    in lower case or not where the tokenizer tells these apart.

    They are float64 above 0 with a sum of about 1; what is met in no word weighs half of the rarest word. For the
    arguments see `word_weights`.
    """
    codes = _known(languages)
    tally = Tally(tokenizer, n_rows)
    rarest = 1.0
    spaced: dict[str, float] = {}
    unspaced: dict[str, float] = {}
    for code in codes:
        # Languages share words, and most of all numbers: each is tokenized once.
        sums = unspaced if code in UNSPACED else spaced
        for word, frequency in _dictionary(code, max(_LEAST_WORDS, _WORDS // len(codes))).items():
            sums[word] = sums.get(word, 0.0) + frequency / len(codes)
            rarest = min(rarest, frequency / len(codes))
    for sums, after_space in ((spaced, _AFTER_SPACE), (unspaced, 0.0)):
        words = _with_numbers(dict(sorted(sums.items(), key=itemgetter(1), reverse=True)))
        rates = torch.tensor(list(words.values()), dtype=torch.float64)
        _add_words(tally, tokenizer, list(words), rates, after_space)
    for code in codes:
        marks = _MARKS["all"] | _MARKS.get(code, {})
        for before, of_marks in zip(("a", _AFTER_WORD), zip(*marks.values(), strict=True), strict=True):
            rates = torch.tensor(of_marks, dtype=torch.float64) * (1 / len(codes))
            tally.add(_cut(tokenizer, before, list(marks)), rates)
    if tally.is_empty():
        raise ProjclustError(f"the vocabulary of the model knows no word of {', '.join(codes)}")
    occurrences = with_ends(tally.sums, tokenizer)
    scale = occurrences.sum()
    # By the rarest word and not by the rarest token, for nothing is known of the share of a long number or a rare form.
    return (occurrences / scale).clamp(min=rarest / 2 / float(scale))


def word_weights(
    tokenizer: PreTrainedTokenizerBase,
    n_rows: int,
    languages: Sequence[str] = ("en",),
    exponent: float = DEFAULT_EXPONENT,
) -> Tensor:
    """Row weights from how often each token occurs in running text, see `word_frequencies`.

    Example::

        tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        compress_model(model, bits=2, sample_weight=word_weights(tokenizer, 30522, ["en"]))

    Args:
        tokenizer: the model's, of any kind.
        n_rows: rows of the table.
        languages: codes of wordfreq, which count alike; "all" stands for those with a large dictionary.
        exponent: the power to which frequencies are raised, more than 0.

    Returns:
        (n_rows,) float64 between 0 and 1, the largest being 1.

    Raises:
        ProjclustError: the exponent is not a positive number; a language is unknown; wordfreq is not installed; or the
            tokenizer is not of this table.
    """
    check_exponent(exponent)  # before words are counted
    return row_weights(word_frequencies(tokenizer, n_rows, languages), exponent)


def _known(languages: Sequence[str]) -> list[str]:
    try:
        import wordfreq
    except ImportError:
        raise ProjclustError("row weights by word frequency need the package wordfreq: pip install wordfreq") from None
    available = wordfreq.available_languages()
    codes: list[str] = []
    for language in languages:
        code = language.strip().lower()
        if code not in (ALL_LANGUAGES, *available):
            raise ProjclustError(
                f"wordfreq has no language {language!r}: use a code such as en, de, fr, es, ru or zh, or all"
            )
        codes += sorted(wordfreq.available_languages("large")) if code == ALL_LANGUAGES else [code]
    if not codes:
        raise ProjclustError("name at least one language")
    return list(dict.fromkeys(codes))


def _dictionary(language: str, words: int) -> dict[str, float]:
    """So many of the most frequent words, and their occurrences per word of text."""
    import wordfreq

    return dict(islice(wordfreq.get_frequency_dict(language, wordlist="best").items(), words))


def _with_numbers(words: dict[str, float]) -> dict[str, float]:
    """The same dictionary with actual numbers in place of wordfreq's forms of numbers."""
    spread: dict[str, float] = {}
    for word, frequency in words.items():
        for number, share in _numbers(word, frequency):
            spread[number] = spread.get(number, 0.0) + frequency * share
    return spread


def _numbers(word: str, frequency: float) -> list[tuple[str, float]]:
    """The numbers of a form such as "00th", with their shares of its occurrences; another word is its own only form."""
    if "0" not in word:  # most of them, found sooner
        return [(word, 1.0)]
    places = [match.start() + i for match in _NUMBER.finditer(word) for i, c in enumerate(match.group()) if c == "0"]
    if places and word.endswith("0s"):
        places.pop()  # decades
    if not places:
        return [(word, 1.0)]
    fillings: list[tuple[int, ...]]
    if len(places) <= 4 and frequency >= _COMMON_NUMBER:
        fillings = list(product(range(10), repeat=len(places)))
    else:
        rest = len(places) - 1
        fillings = [(first, *([0] * rest)) for first in range(1, 10)]
        fillings += [tuple((first + 3 * i) % 10 for i in range(rest + 1)) for first in range(10)]
    numbers = []
    for filling in dict.fromkeys(fillings):
        letters = list(word)
        for place, digit in zip(places, filling, strict=True):
            letters[place] = str(digit)
        numbers.append("".join(letters))
    shares = [_odds(number) for number in numbers]
    total = sum(shares)
    return [(number, share / total) for number, share in zip(numbers, shares, strict=True)]


def _odds(number: str) -> float:
    """How frequent a number is beside others of its form."""
    from wordfreq.numbers import digit_freq

    # Its own estimate: small first digits and the years of our time are more frequent.
    odds = digit_freq(number)
    if _YEAR.search(number):
        return odds
    digits = re.sub(r"\D", "", number).lstrip("0")
    return odds * _ROUND ** (len(digits) - len(digits.rstrip("0")))


def _add_words(
    tally: Tally, tokenizer: PreTrainedTokenizerBase, words: list[str], rates: Tensor, after_space: float
) -> None:
    """Add to each token of a word the word's rate, shared out among the forms in which it is written."""
    common = words[:1000]
    spaced = _cut(tokenizer, _AFTER_WORD, common)
    # Where a tokenizer does not tell two forms apart, as uncased WordPiece, one of them is tokenized for both.
    cased = _cut(tokenizer, _AFTER_WORD, [word.upper() for word in common]) != spaced
    if _cut(tokenizer, _AFTER_BRACKET, common) == spaced:
        after_space = 1.0
    for start in range(0, len(words), BATCH):
        batch, rate = words[start : start + BATCH], rates[start : start + BATCH]
        usual, ids = batch, _cut(tokenizer, _AFTER_WORD, batch)
        if cased:
            # Names and acronyms: a vocabulary made from text has fewer tokens for the case in which a word is written.
            forms = [batch, [word.capitalize() for word in batch], [word.upper() for word in batch]]
            cuts = [ids, *(_cut(tokenizer, _AFTER_WORD, form) for form in forms[1:])]
            lengths = [[math.inf if tokenizer.unk_token_id in ids else len(ids) for ids in cut] for cut in cuts]
            best = [form.index(min(form)) for form in zip(*lengths, strict=True)]
            usual = [forms[form][i] for i, form in enumerate(best)]
            ids = [cuts[form][i] for i, form in enumerate(best)]
            other = [cuts[0 if form else 1][i] for i, form in enumerate(best)]
            tally.add(other, rate * after_space * _OTHER_CASE)
        tally.add(ids, rate * after_space * (1 - _OTHER_CASE if cased else 1))
        if after_space < 1:
            tally.add(_cut(tokenizer, _AFTER_BRACKET, usual), rate * (1 - after_space))


def _cut(tokenizer: PreTrainedTokenizerBase, before: str, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text as it stands after `before`."""
    (head,) = tokenize(tokenizer, [before.rstrip(" ")], special_tokens=False)
    cut = tokenize(tokenizer, [before + text for text in texts], special_tokens=False)
    # A tokenizer may make one token of the end of `before` and the beginning of a text: that stays.
    return [ids[len(head) :] if ids[: len(head)] == head else ids for ids in cut]
