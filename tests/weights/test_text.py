import json
from pathlib import Path

import pytest
import torch
from weights.tiny_tokenizers import byte_level, sentencepiece, wordpiece

from projclust import ProjclustError
from projclust.weights.text import text_frequencies

WORDS = wordpiece("the", "cat", "##s", "dog")  # rows 5 to 8


def test_counts_tokens_of_lines(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\ufeffThe cat\r\n\n  \nthe cats zz")
    #            [PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s dog, and a padded row
    expected = [0.5, 1, 2, 2, 0.5, 2, 2, 1, 0.5, 0.5]
    assert text_frequencies(str(tmp_path / "t.txt"), WORDS, 10).tolist() == [count / 10 for count in expected]


def test_other_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the the\nthe")
    of_bytes = byte_level("Ġthe", "the")
    rows = of_bytes.convert_tokens_to_ids(["the", "Ġthe"])
    assert text_frequencies(str(tmp_path / "t.txt"), of_bytes, len(of_bytes))[rows].tolist() == [2 / 3, 1 / 3]
    pieces = sentencepiece("▁the", "the")
    assert text_frequencies(str(tmp_path / "t.txt"), pieces, 4).tolist() == [0.1, 0.4, 0.6, 0.1]


def test_texts_longer_than_the_model_and_more_than_a_batch(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the " * 3000 + "\n" + "cat\n" * 9000)
    frequencies = text_frequencies(str(tmp_path / "t.txt"), WORDS, 9)
    assert frequencies[5] / frequencies[6] == pytest.approx(1 / 3)
    assert frequencies[2] == frequencies[3] == pytest.approx(9001 / 30002)


def test_a_dataset_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"a": "the cat", "n": 3, "b": "dog"}, {"a": "cat", "n": 4, "b": None}]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frequencies = text_frequencies(str(tmp_path / "data"), WORDS, 9)
    assert (frequencies * 10).tolist() == pytest.approx([0.5, 0.5, 3, 3, 0.5, 1, 2, 0.5, 1])


def test_a_configuration_of_a_dataset(tmp_path: Path) -> None:
    for name, word in (("one", "cat"), ("two", "dog")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"a": word}) + "\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    frequencies = text_frequencies(f"{tmp_path}:two", WORDS, 9)
    assert frequencies[8] == 2 * frequencies[6] == 1 / 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"zz", "that the vocabulary knows"),
        (b"\n  \n", "holds no text"),
        (b"\xff\xfe\x00", "is no UTF-8 text file"),
        (b"the\0cat", "is no text file"),
        (None, "there is no text file or dataset"),
    ],
)
def test_files_without_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ProjclustError, match=message):
        text_frequencies(str(tmp_path / "t.txt"), WORDS, 9)


@pytest.mark.parametrize("source", ["nobody/nothing", "x" * 5000, "absent", "absent.txt", ""])
def test_datasets_that_cannot_be_read(source: str) -> None:
    with pytest.raises(ProjclustError) as refused:
        text_frequencies(source, WORDS, 9)
    assert "\n" not in str(refused.value)


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(ProjclustError, match="cannot read the training rows of the dataset"):
        text_frequencies(str(tmp_path), WORDS, 9)


def test_a_tokenizer_of_another_table(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the dog")
    with pytest.raises(ProjclustError, match="gives row 8, but the table has 8 rows"):
        text_frequencies(str(tmp_path / "t.txt"), WORDS, 8)


def test_is_of_float64(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the")
    assert text_frequencies(str(tmp_path / "t.txt"), WORDS, 9).dtype == torch.float64
