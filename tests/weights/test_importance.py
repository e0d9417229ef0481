from pathlib import Path

import pytest
import torch
import wordfreq

from projclust import ProjclustError
from projclust.hf.checkpoint import load_tokenizer
from projclust.jobs.common import check_weights, read_weights
from projclust.weights import DEFAULT_EXPONENT, row_weights, text_frequencies, word_frequencies


def test_powers_scaled_to_one() -> None:
    frequencies = torch.tensor([8.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    assert row_weights(frequencies, 1 / 3).tolist() == pytest.approx([1, 0, 0.5, 0.25 ** (1 / 3)])
    assert row_weights(frequencies, 1).tolist() == [1, 0, 0.125, 0.25]
    assert row_weights(frequencies).tolist() == pytest.approx([1, 0, 0.125**0.4, 0.25**0.4])
    assert row_weights(frequencies * 1e300, 3).tolist() == pytest.approx([1, 0, 0.125**3, 0.25**3])


@pytest.mark.parametrize("exponent", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_other_powers(exponent: float) -> None:
    with pytest.raises(ProjclustError, match="greater than 0"):
        row_weights(torch.ones(2, dtype=torch.float64), exponent)


@pytest.mark.parametrize("weights", ["uniform", "wordfreq", "wordfreq:de", "wordfreq:de,fr", "counts:c", "text:a/b:c"])
def test_knows(weights: str) -> None:
    check_weights(weights)


@pytest.mark.parametrize(
    "weights", ["", "zipf", "uniform:1", "wordfreq:", "counts", "counts:", "text", "text:", "Text:a"]
)
def test_does_not_know(weights: str) -> None:
    with pytest.raises(
        ProjclustError, match="must be uniform, wordfreq, wordfreq:LANG,..., counts:FILE or text:SOURCE"
    ):
        check_weights(weights)


def test_counts_are_taken_as_they_stand_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("3\n0\n1\n")
    assert read(f"counts:{tmp_path / 'c'}", tmp_path, 3) == [1.0, 0.0, 1 / 3]
    assert read(f"counts:{tmp_path / 'c'}", tmp_path, 3, 0.5) == pytest.approx([1.0, 0.0, (1 / 3) ** 0.5])


def read(weights: str, checkpoint: Path, n_rows: int, exponent: float | None = None) -> list[float]:
    result = read_weights(weights, checkpoint, n_rows, exponent)
    assert result is not None
    return result.tolist()


def test_uniform_is_none(tmp_path: Path) -> None:
    assert read_weights("uniform", tmp_path, 3) is None


def test_text_and_words_are_raised_to_a_power(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda code, wordlist: {"the": 0.5, code: 0.1})
    (tmp_path / "t.txt").write_text("the cat sat\n")
    tokenizer = load_tokenizer(minilm)
    frequencies = text_frequencies(str(tmp_path / "t.txt"), tokenizer, 30522)
    text = f"text:{tmp_path / 't.txt'}"
    assert read(text, minilm, 30522) == row_weights(frequencies, DEFAULT_EXPONENT).tolist()
    assert read(text, minilm, 30522, 1.0) == row_weights(frequencies, 1).tolist()
    frequencies = word_frequencies(tokenizer, 30522, ["de", "en"])
    assert read("wordfreq:de,en", minilm, 30522) == row_weights(frequencies, DEFAULT_EXPONENT).tolist()
