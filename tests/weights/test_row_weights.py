import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wordfreq
from transformers import PreTrainedTokenizerBase
from weights.tiny_tokenizers import wordpiece

from projclust import ProjclustError
from projclust.weights.importance import row_weights
from projclust.weights.names import DEFAULT_EXPONENT, check_weights_name
from projclust.weights.row_weights import RowWeights
from projclust.weights.text import text_frequencies
from projclust.weights.wordfreq import word_frequencies

TOKENIZER = wordpiece("the", "cat", "der")


def tokenizer() -> PreTrainedTokenizerBase:
    return TOKENIZER


def no_tokenizer() -> PreTrainedTokenizerBase:
    pytest.fail("the tokenizer is not needed")


def read(name: str, n_rows: int, exponent: float | None = None) -> list[float]:
    values = RowWeights.read(name, exponent, tokenizer, n_rows).values
    assert values is not None
    return values.tolist()


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda code, wordlist: {"the": 0.5, code: 0.1, "der": 0.2})


@pytest.mark.parametrize(
    "name",
    [
        "auto",
        "uniform",
        "tokenizer",
        "tokenizer:known",
        "tokenizer:de,fr",
        "wordfreq",
        "wordfreq:de",
        "wordfreq:de,fr",
        "wordfreq:de+fr",
        "counts:c",
        "text:a/b:c",
    ],
)
def test_knows(name: str) -> None:
    check_weights_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "zipf", "uniform:1", "auto:de", "tokenizer:", "wordfreq:", "counts", "counts:", "text", "text:", "Text:a"],
)
def test_does_not_know(name: str) -> None:
    message = r"must be auto, model, tokenizer\[:LANG,...\], wordfreq\[:LANG,...\], counts:FILE, text:SOURCE or uniform"
    with pytest.raises(ProjclustError, match=message):
        check_weights_name(name)
    with pytest.raises(ProjclustError, match=message):
        RowWeights.read(name, None, no_tokenizer, 3)


def test_names_are_checked_without_torch() -> None:
    code = "import sys, projclust.weights.names; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_uniform_ones_have_no_values() -> None:
    weights = RowWeights.read("uniform", None, no_tokenizer, 3)
    assert (weights.values, weights.frequencies, weights.exponent, weights.sha256) == (None, None, None, None)
    assert weights.recorded == RowWeights().name == "uniform"


def test_counts_are_taken_as_they_stand_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("3\n0\n1\n")
    assert read(f"counts:{tmp_path / 'c'}", 3) == [1.0, 0.0, 1 / 3]
    assert read(f"counts:{tmp_path / 'c'}", 3, 0.5) == pytest.approx([1.0, 0.0, (1 / 3) ** 0.5])
    assert RowWeights.read(f"counts:{tmp_path / 'c'}", None, no_tokenizer, 3).exponent == 1.0
    (tmp_path / "t").write_text("cat\t2\nthe\t4\n")
    assert read(f"counts:{tmp_path / 't'}", 8)[5:] == [1.0, 0.5, 0.0]


def test_text_and_words_are_raised_to_a_power(words: None, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat\n")
    frequencies = text_frequencies(str(tmp_path / "t.txt"), TOKENIZER, 8)
    text = f"text:{tmp_path / 't.txt'}"
    assert read(text, 8) == row_weights(frequencies, DEFAULT_EXPONENT).tolist()
    assert read(text, 8, 1.0) == row_weights(frequencies, 1).tolist()
    frequencies = word_frequencies(TOKENIZER, 8, ["de", "en"])
    assert read("wordfreq:de,en", 8) == row_weights(frequencies, DEFAULT_EXPONENT).tolist()
    weights = RowWeights.read("wordfreq", None, tokenizer, 8)
    assert weights.exponent == DEFAULT_EXPONENT
    assert weights.frequencies is not None
    assert torch.equal(weights.frequencies, word_frequencies(TOKENIZER, 8))


def test_languages_may_be_joined_by_plus_where_commas_separate_something_else(words: None) -> None:
    commas, pluses = (RowWeights.read(f"wordfreq:{text}", None, tokenizer, 8) for text in ("en,de", "en+de"))
    assert commas.sha256 == pluses.sha256
    assert commas.recorded == pluses.recorded == "wordfreq:en,de"
    assert pluses.name == "wordfreq:en+de"


@pytest.mark.parametrize("name", ["wordfreq", "counts:absent", "text:absent"])
@pytest.mark.parametrize("exponent", [0.0, -1.0, float("nan")])
def test_an_impossible_exponent_is_refused_before_anything_is_read(name: str, exponent: float) -> None:
    with pytest.raises(ProjclustError, match="greater than 0"):
        RowWeights.read(name, exponent, no_tokenizer, 3)


def test_the_digest_is_that_of_earlier_results() -> None:
    weights = RowWeights("counts:c", torch.tensor([2.0, 1.0], dtype=torch.float64), 1.0)
    # sha256 of {"weights": [1.0, 0.5]}
    assert weights.sha256 == "d71e651564ae40b06bc9cfbe4297c91eb9649319b2d845183fb132188a2dd481"


def test_no_path_of_this_machine_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, recorded in {
        "counts:/a/b/c.txt": "counts:c.txt",
        "text:/a/b/c.txt": "text:c.txt",
        f"text:{tmp_path}/data": "text:data",
        f"text:{tmp_path}/data:config": "text:data:config",
        "text:data/": "text:data",
        "text:./data:config": "text:data:config",
        "text:user/dataset:config": "text:user/dataset:config",
        "wordfreq": "wordfreq",
    }.items():
        assert RowWeights(name).recorded == recorded
