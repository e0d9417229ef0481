"""What version 0.1 wrote is read as it was: checkpoints, option files and measurements in tests/samples/0.1."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import tiny_model, uneven_model
from transformers import AutoModel

from projclust.cli.app import run
from projclust.results.rows import read_results

SAMPLES = Path(__file__).parent / "samples" / "0.1"
CHECKPOINTS = sorted(folder.name for folder in (SAMPLES / "checkpoints").iterdir())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_old_checkpoint_is_the_table_it_was(name: str, tmp_path: Path) -> None:
    folder = SAMPLES / "checkpoints" / name
    wanted = load_file(SAMPLES / "tables.safetensors")[name]
    model = AutoModel.from_pretrained(folder)
    torch.testing.assert_close(model.get_input_embeddings().dense_weight().float(), wanted, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).get_input_embeddings()
    assert torch.equal(again.dense_weight(), model.get_input_embeddings().dense_weight())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_old_option_file_compresses_to_the_same_sizes(name: str, tmp_path: Path) -> None:
    folder = SAMPLES / "checkpoints" / name
    source, out = tmp_path / "source", tmp_path / "out"
    (uneven_model("bert") if name == "adaptive" else tiny_model("bert")).save_pretrained(source)
    options = yaml.safe_load((folder / "projclust_options.yaml").read_text())
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(options | {"model": str(source), "output": str(out)}))
    assert run(["compress", "--config", str(tmp_path / "old.yaml")]) == 0
    old, new = (json.loads((place / "projclust_report.json").read_text()) for place in (folder, out))
    for field in ("method", "j", "affine", "codes", "loss", "seed", "restarts", "params_dense", "bytes_dense"):
        assert new[field] == old[field], field
    for field in ("bytes_stored", "relative_error"):  # which rounding on another machine may move
        assert new[field] == pytest.approx(old[field], rel=0.02), field
    stored = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    assert stored.keys() == load_file(out / "model.safetensors").keys()


def test_old_measurements_are_not_made_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "glue"
    shutil.copytree(SAMPLES / "glue", out)
    cells = {path.name for path in (out / "cells").iterdir()}
    options = yaml.safe_load((out / "projclust_options.yaml").read_text())
    options |= {"model": str(SAMPLES / "classifier"), "output": str(out)}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(options))
    assert run(["glue-eval", "--config", str(tmp_path / "old.yaml"), "--format", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["measured"] == 0
    assert {path.name for path in (out / "cells").iterdir()} == cells
    assert len(read_results(out / "results.json")) == len(cells) == 10
