import json
from pathlib import Path

import pytest
import torch
from commandline import Cli
from tiny_models import VOCABULARY, WIDTH, logits


def test_inspects_a_compressed_checkpoint(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    report = cli("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out", "--format", "json").json
    shown = cli("inspect", tmp_path / "out", "--format", "json").json
    assert shown["compressed"] is True
    same = ("k", "j", "ranks", "affine", "method", "weights", "n", "d", "seed", "bytes_stored", "bits_per_weight")
    for name in (*same, "relative_error", "model", "versions", "model_bytes_stored", "embedding"):
        assert shown[name] == report[name], name
    assert sum(part["bytes"] for part in shown["parts"].values()) == shown["bytes_stored"]
    prefix = "bert.embeddings.word_embeddings."
    assert shown["parts"][prefix + "weight"]["shape"] == [VOCABULARY, 5]
    assert "relative error" in cli("inspect", tmp_path / "out").out


@pytest.mark.parametrize("options", [("--bits", 8), ("--k", 3, "--j", 5, "--codes", "int4")])
def test_inspects_a_coded_checkpoint(cli: Cli, tiny_folder: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    outcome = cli("compress", tiny_folder, *options, "-o", tmp_path / "out", "--format", "json")
    # The tiny vocabulary lacks what its tokenizer needs: good enough for weights that nobody asked for.
    assert ("all rows weigh the same" in outcome.err) == ("--bits" in options)
    report, shown = outcome.json, cli("inspect", tmp_path / "out", "--format", "json").json
    for name in ("codes", "bits_per_weight", "bytes_stored", "relative_error", "weights", "metric", "ranks"):
        assert shown[name] == report[name], name
    parts = {name.rpartition(".")[2]: part for name, part in shown["parts"].items()}
    assert {part["dtype"] for part in parts.values()} == {"U8"}
    assert sum(part["bytes"] for part in parts.values()) == shown["bytes_stored"]
    assert sum(shown["cluster_sizes"]) == VOCABULARY
    in_rows = sum(rows * size for rows, size in zip(shown["cluster_sizes"], shown["row_bytes"], strict=True))
    assert in_rows == parts["weight"]["bytes"]
    assert sum(shown["ranks"]) == parts["deviations"]["bytes"]
    assert "relative error" in cli("inspect", tmp_path / "out").out


def test_inspects_a_dense_checkpoint(cli: Cli, tiny_folder: Path) -> None:
    shown = cli("inspect", tiny_folder, "--format", "json").json
    assert shown["compressed"] is False
    assert shown["bytes_stored"] == VOCABULARY * WIDTH * 4
    assert shown["bits_per_weight"] == 32
    text = cli("inspect", tiny_folder).out
    assert "--bits 0.5 is where to begin" in text
    assert text.endswith(f"\nnext: projclust compress {tiny_folder} --bits 0.5\n")


def test_a_fine_tuned_copy_has_no_known_error(cli: Cli, compressed_folder: Path) -> None:
    # save_pretrained writes no report, and after training the old figure would be wrong.
    assert cli("inspect", compressed_folder, "--format", "json").json["relative_error"] is None
    assert "unknown" in cli("inspect", compressed_folder).out


def test_expands_to_a_stock_checkpoint(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, BertForMaskedLM

    cli("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out")
    outcome = cli("expand", tmp_path / "out", "-o", tmp_path / "dense", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["model_bytes_dense"] > outcome.json["model_bytes_stored"]
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert (tmp_path / "dense" / "vocab.txt").is_file()
    dense = BertForMaskedLM.from_pretrained(tmp_path / "dense")
    assert type(dense.get_input_embeddings()) is torch.nn.Embedding
    compressed = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(dense, "bert"), logits(compressed, "bert"), atol=1e-5)
    assert cli("expand", tmp_path / "out", "-o", tmp_path / "dense", "--overwrite").code == 0
    # What was expanded can be compressed again.
    assert cli("compress", tmp_path / "dense", "--k", 3, "--j", 5, "-o", tmp_path / "again").code == 0
