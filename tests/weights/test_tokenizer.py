"""Row weights that the tokenizer itself tells, and the languages that its vocabulary knows."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import wordfreq
from transformers import PreTrainedTokenizerBase
from weights.tiny_tokenizers import byte_level, sentencepiece, wordpiece

from projclust import ProjclustError
from projclust.checkpoints.load import load_tokenizer
from projclust.recipes.recipe import Recipe
from projclust.weights.choose import choose_weights
from projclust.weights.languages import known_languages
from projclust.weights.tokenizer import tokenizer_frequencies
from projclust.weights.wordfreq import word_frequencies


def test_unigram_pieces_have_the_probabilities_of_their_scores() -> None:
    # Scores -1, -2 and -3; <unk> and </s> are special, and row 5 has no token.
    frequencies = tokenizer_frequencies(sentencepiece("▁the", "▁cat", "s"), 6)
    assert float(frequencies.sum()) == pytest.approx(1)
    the, cat, s = frequencies[2:5].tolist()
    assert (cat / the, s / the) == pytest.approx((math.exp(-1), math.exp(-2)))
    assert float(frequencies[0]) == float(frequencies[5]) == pytest.approx(s)
    ordinary = 4 * s + cat + the + s  # <unk>, </s> and row 5 count like the rarest piece
    assert float(frequencies[1]) == pytest.approx(s + (ordinary - s) / (20 + 1) * 1, rel=0.05)


def test_other_tokens_follow_zipfs_law_in_the_order_of_the_vocabulary() -> None:
    frequencies = tokenizer_frequencies(wordpiece("a", "the", "of", "[unused7]", "cat", "##s"), 11)
    rows = {"[PAD]": 0, "a": 5, "the": 6, "of": 7, "[unused7]": 8, "cat": 9, "##s": 10}
    of = {token: float(frequencies[row] / frequencies[rows["the"]]) for token, row in rows.items()}
    assert (of["of"], of["cat"]) == pytest.approx((2.7 / 3.7, 2.7 / 4.7))
    # Of 5 ordinary tokens, a single character counts like the one of rank .3 * 5, but a letter that may stand alone like
    # the one of rank .003 * 5.
    assert (of["a"], of["##s"]) == pytest.approx((2.7 / 2.715, 2.7 / 4.2))
    assert of["[unused7]"] == of["[PAD]"] == pytest.approx(of["cat"])


def test_byte_level_tokens_follow_their_merges() -> None:
    tokenizer = byte_level("Ġthe", "Ġcat")
    frequencies, vocabulary = tokenizer_frequencies(tokenizer, len(tokenizer)), tokenizer.get_vocab()
    merged = ["Ġt", "Ġth", "Ġthe", "Ġc", "Ġca", "Ġcat"]
    found = frequencies[[vocabulary[token] for token in merged]]
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert found[0] / found[5] == pytest.approx((5 + 2.7) / 2.7)


def test_added_tokens_count_like_the_average_one() -> None:
    tokenizer = wordpiece("the", "of", "cats")
    plain = tokenizer_frequencies(tokenizer, 9)
    tokenizer.add_tokens(["flurb"])
    row = tokenizer.get_vocab()["flurb"]
    frequencies = tokenizer_frequencies(tokenizer, 9)
    assert float(frequencies[row] / frequencies[5]) == pytest.approx(float(plain[5:8].mean() / plain[5]))


def test_a_tokenizer_of_another_table_is_refused() -> None:
    with pytest.raises(ProjclustError, match="it has row 7, but the table has 7 rows"):
        tokenizer_frequencies(wordpiece("the", "of", "cat"), 7)


def test_a_folder_with_a_sentencepiece_file_alone(tmp_path: Path) -> None:
    import sentencepiece as library

    words = ["the cat sat on the mat", "the dog and the cat", "a mat for the dog"] * 20
    model = io.BytesIO()
    ids: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    library.SentencePieceTrainer.train(sentence_iterator=iter(words), model_writer=model, vocab_size=22, **ids)
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    tokenizer = load_tokenizer(tmp_path)
    frequencies, rows = tokenizer_frequencies(tokenizer, 40), tokenizer.get_vocab()
    stored = library.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [stored.IdToPiece(row) for row in range(3, 22)]
    scores = torch.tensor([stored.GetScore(row) for row in range(3, 22)], dtype=torch.float64)
    found = frequencies[[rows[piece] for piece in pieces]]
    assert torch.allclose(found / found.max(), (scores - scores.max()).exp())


def test_minilm_is_english(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    assert known_languages(tokenizer) == ["en"]
    # The order of the vocabulary tells nearly what a dictionary tells.
    own, words = tokenizer_frequencies(tokenizer, 30522), word_frequencies(tokenizer, 30522)
    ranks = torch.stack([own, words]).argsort(1).argsort(1).double()
    assert float(torch.corrcoef(ranks[:, 1996:])[0, 1]) > 0.6  # from "the" on
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.6


@pytest.fixture
def two_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"en": [f"dog{number}" for number in range(400)], "de": [f"hund{number}" for number in range(400)]}
    monkeypatch.setattr(wordfreq, "available_languages", lambda wordlist="best": dict.fromkeys(words))
    monkeypatch.setattr(wordfreq, "iter_wordlist", lambda code, wordlist: iter(words[code]))
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda code, wordlist: dict.fromkeys(words[code], 0.001))


@pytest.mark.parametrize(
    ("stems", "known", "taken"),
    [
        (["dog"], ["en"], "wordfreq"),
        (["hund"], ["de"], "wordfreq:de"),
        (["dog", "hund"], ["de", "en"], "tokenizer"),
        (["katt"], [], "tokenizer"),
    ],
)
def test_the_default_follows_the_languages_of_the_vocabulary(
    stems: list[str], known: list[str], taken: str, two_dictionaries: None
) -> None:
    words = [f"{stem}{number}" for stem in stems for number in range(400)]
    letters = [*map(str, range(10)), *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"), *"dhka"]
    tokenizer = wordpiece(*words, *letters)
    assert known_languages(tokenizer) == known
    told: list[str] = []
    weights = choose_weights(Recipe(bits=1), lambda: tokenizer, len(tokenizer), stage=told.append)
    assert weights.name == taken
    assert weights.exponent == (0.5 if taken == "tokenizer" else 0.4)
    assert told[-1].startswith(f"weighing rows by {taken}: ")


def test_several_languages_mix_the_tokenizers_frequencies_with_dictionaries(two_dictionaries: None) -> None:
    tokenizer = wordpiece(*(f"dog{number}" for number in range(400)))
    mixed = choose_weights(Recipe(bits=1, weights="tokenizer:en"), lambda: tokenizer, 405)
    assert mixed.frequencies is not None
    wanted = (tokenizer_frequencies(tokenizer, 405) + word_frequencies(tokenizer, 405)) / 2
    assert torch.equal(mixed.frequencies, wanted)
    assert mixed.recorded == "tokenizer:en"


def test_codes_never_have_uniform_weights_without_a_word() -> None:
    def broken() -> PreTrainedTokenizerBase:
        raise ProjclustError("there is no tokenizer")

    warned: list[str] = []
    weights = choose_weights(Recipe(bits=1), broken, 10, warn=warned.append)
    assert weights.values is None
    assert warned == ["all rows weigh the same, for want of word frequencies: there is no tokenizer"]
