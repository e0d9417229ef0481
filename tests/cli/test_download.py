"""What `inspect` and `plan` say of the whole download: every file is in one part, and each part says what helps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Cli
from safetensors.torch import save_file
from tiny_models import VOCABULARY, WIDTH, tiny_model
from weights.tiny_tokenizers import wordpiece

TABLE = 4 * VOCABULARY * WIDTH


def save(name: str, folder: Path) -> Path:
    """A dense model with a tokenizer, as tokenizers writes it for people, and what is not downloaded with it."""
    tiny_model(name).save_pretrained(folder)
    tokenizer = wordpiece(*(f"w{row}" for row in range(5, VOCABULARY)))
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    (folder / "README.md").write_text("# Tiny\n" * 1000)
    (folder / "training_args.bin").write_bytes(b"0" * 1000)
    return folder


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A masked language model."""
    return save("bert", tmp_path / "dense")


def size(folder: Path, *names: str) -> int:
    """The bytes of files."""
    return sum((folder / name).stat().st_size for name in names)


def download(cli: Cli, *arguments: object) -> dict[str, dict[str, Any]]:
    """The parts that a command tells of."""
    outcome = cli(*arguments, "--format", "json")
    assert outcome.code == 0, outcome.err
    parts = outcome.json["download"]
    total = sum(part["bytes"] for part in parts.values())
    assert all(part["share"] == pytest.approx(part["bytes"] / total) for part in parts.values())
    return dict(parts)


def test_a_dense_model(cli: Cli, dense: Path) -> None:
    parts = download(cli, "inspect", dense)
    assert {name: part["bytes"] for name, part in parts.items()} == {
        "table": TABLE,
        "body": size(dense, "model.safetensors") - TABLE,
        "tokenizer": size(dense, "tokenizer.json", "tokenizer_config.json"),
        "other": size(dense, "config.json") + sum(path.stat().st_size for path in dense.glob("generation_*.json")),
    }
    words = {"table": "projclust compress", "body": "export --to onnx --body int8 or int4", "tokenizer": "its spaces"}
    for name, text in words.items():
        assert text in parts[name]["advice"]
    assert parts["other"]["advice"] is None
    least = json.dumps(json.loads((dense / "tokenizer.json").read_text()), separators=(",", ":"))
    assert parts["tokenizer"]["saves"] == size(dense, "tokenizer.json") - len(least)
    text = cli("inspect", dense).out
    assert f"  table            {TABLE / 1e6:.2f} MB, {parts['table']['share']:.1%}: projclust compress\n" in text
    assert f"({parts['tokenizer']['saves'] / 1e6:.2f} MB less)" in text


def test_plan_says_the_same(cli: Cli, dense: Path) -> None:
    options = ("--bits", "6", "--weights", "uniform")
    assert download(cli, "plan", dense, *options) == download(cli, "inspect", dense)
    shown = [line for line in cli("plan", dense, *options).out.splitlines() if line.startswith("  body ")]
    assert len(shown) == 1
    assert "projclust compress or export" in shown[0]


def test_after_each_advice_was_taken(cli: Cli, dense: Path, tmp_path: Path) -> None:
    before = download(cli, "inspect", dense)
    assert cli("compress", dense, "--bits", 6, "--weights", "uniform", "-o", tmp_path / "coded").code == 0
    after = download(cli, "inspect", tmp_path / "coded")
    assert after["table"]["bytes"] < TABLE / 4
    assert after["table"]["advice"] is after["tokenizer"]["advice"] is None
    assert before["tokenizer"]["bytes"] - after["tokenizer"]["bytes"] == before["tokenizer"]["saves"]
    assert after["tokenizer"]["saves"] == 0
    assert "export" in after["body"]["advice"]


def test_a_body_that_is_small_needs_nothing(cli: Cli, dense: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("projclust.hf.body._LEAST", 64)
    before = download(cli, "inspect", dense)
    assert cli("compress", dense, "--bits", 6, "--body", "int4", "-o", tmp_path / "small").code == 0
    after = download(cli, "inspect", tmp_path / "small")
    assert after["body"]["bytes"] < before["body"]["bytes"]
    assert after["body"]["advice"] is None


def test_what_cannot_be_exported_for_its_use_is_not_said_to(cli: Cli, tmp_path: Path) -> None:
    for name in ("gpt2", "t5"):  # text that is generated, and two graphs
        parts = download(cli, "inspect", save(name, tmp_path / name))
        assert parts["body"]["advice"] == "projclust compress --body int8 or int4"
        assert parts["table"]["advice"] is not None


def test_layers_of_sentence_encoders_are_of_the_body(cli: Cli, dense: Path) -> None:
    before = download(cli, "inspect", dense)
    (dense / "2_Dense").mkdir()
    save_file({"linear.weight": torch.zeros(8, WIDTH)}, dense / "2_Dense" / "model.safetensors")
    (dense / "2_Dense" / "config.json").write_text("{}")
    (dense / "unreadable.spm").symlink_to("nowhere")
    after = download(cli, "inspect", dense)
    assert after["body"]["bytes"] - before["body"]["bytes"] == size(dense, "2_Dense/model.safetensors")
    assert after["other"]["bytes"] - before["other"]["bytes"] == 2


def test_a_model_without_a_tokenizer(cli: Cli, compressed_folder: Path) -> None:
    parts = download(cli, "inspect", compressed_folder)
    assert (parts["tokenizer"]["bytes"], parts["tokenizer"]["saves"], parts["tokenizer"]["advice"]) == (0, 0, None)
