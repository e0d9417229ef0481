"""What is lost by script, in the report of compress and in the pick of plan."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from commandline import Cli
from safetensors.torch import load_file
from transformers import AutoModel

ROWS, WIDTH = 605, 16
TABLE = "embeddings.word_embeddings.weight"


@pytest.fixture
def two_scripts(tmp_path: Path) -> Path:
    """A model whose first 300 words are Latin and whose other 300 are Cyrillic, and are written with ten times less."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=ROWS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    folder = tmp_path / "model"
    hf.BertModel(config).save_pretrained(folder)
    words = [*(f"w{row}" for row in range(300)), *(f"ж{row}" for row in range(300))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    hf.BertTokenizer(vocab={word: row for row, word in enumerate(vocabulary)}).save_pretrained(folder)
    weights = [1.0] * 305 + [0.1] * 300
    (tmp_path / "weights.txt").write_text("\n".join(map(str, weights)), encoding="utf-8")
    return folder


def test_compress_tells_what_it_lost_of_each_script(cli: Cli, two_scripts: Path, tmp_path: Path) -> None:
    weights = f"counts:{tmp_path / 'weights.txt'}"
    outcome = cli("compress", two_scripts, "--bits", 3, "--weights", weights, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out" / "projclust_report.json").read_text(encoding="utf-8"))
    found = report["errors_by_script"]
    assert list(found) == ["Latin", "Cyrillic", "other"]
    assert {name: own["rows"] for name, own in found.items()} == {"Latin": 300, "Cyrillic": 300, "other": 5}
    assert found["Latin"]["weight"] == pytest.approx(300 / 335)
    exact, rows = load_file(two_scripts / "model.safetensors")[TABLE], slice(305, 605)
    read = AutoModel.from_pretrained(tmp_path / "out").get_input_embeddings()(torch.arange(ROWS)).detach()
    lost = (read - exact)[rows].square().sum() / exact[rows].square().sum()
    assert found["Cyrillic"]["weighted_relative_error"] == pytest.approx(float(lost), rel=1e-3)
    assert found["Cyrillic"]["weighted_relative_error"] > found["Latin"]["weighted_relative_error"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for told in (outcome.out, card):
        assert f"Cyrillic {float(lost):.2f}" in next(line for line in told.split("\n") if "by script" in line)


def test_plan_tells_what_its_pick_would_lose_of_each_script(cli: Cli, two_scripts: Path, tmp_path: Path) -> None:
    weights = f"counts:{tmp_path / 'weights.txt'}"
    result = cli("plan", two_scripts, "--bits", 3, "--weights", weights, "--format", "json").json
    found = result["pick"]["errors_by_script"]
    out = ("-o", tmp_path / "out", "--format", "json")
    made = cli("compress", two_scripts, "--bits", 3, "--weights", weights, "--metric", "none", *out).json
    assert list(found) == list(made["errors_by_script"])
    for name in ("Latin", "Cyrillic"):  # of which a sample is coded
        wanted = made["errors_by_script"][name]["weighted_relative_error"]
        assert found[name]["weighted_relative_error"] == pytest.approx(wanted, rel=0.15)


def test_what_was_chosen_is_told(cli: Cli, two_scripts: Path, tmp_path: Path) -> None:
    outcome = cli("compress", two_scripts, "--bits", 3, "-o", tmp_path / "out")
    chosen = "tokenizer: its vocabulary knows no language that there is a dictionary of"
    assert f"row weights        {chosen}\n" in outcome.out
    report = json.loads((tmp_path / "out" / "projclust_report.json").read_text(encoding="utf-8"))
    assert (report["weights"], report["weights_exponent"], report["weights_chosen"]) == ("tokenizer", 0.5, chosen)


def test_a_folder_without_a_tokenizer_tells_nothing_by_script(cli: Cli, two_scripts: Path, tmp_path: Path) -> None:
    for file in two_scripts.glob("*token*"):
        file.unlink()
    outcome = cli("compress", two_scripts, "--bits", 3, "-o", tmp_path / "out")
    assert "warning: all rows weigh the same, for want of word frequencies: " in outcome.err
    report = json.loads((tmp_path / "out" / "projclust_report.json").read_text(encoding="utf-8"))
    assert report["errors_by_script"] is None
    assert report["weights_chosen"].startswith("uniform: ")
    assert "by script" not in outcome.out
