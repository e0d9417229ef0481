"""`projclust export` on the command line: what it prints, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx_graphs  # noqa: F401, which skips where torch is too old
import pytest
import torch
import transformers as hf
from commandline import Cli, snapshot
from tiny_models import VOCABULARY, compressed_model, tiny_model

import projclust.onnx_export.check
import projclust.onnx_export.needs

Refused = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coded encoder."""
    compressed_model("bert", "auto").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_export(cli: Cli, folder: Path, tmp_path: Path) -> None:
    before = snapshot(folder)
    outcome = cli("export", folder, "-o", tmp_path / "out", "--to", "onnx", "--format", "json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert report["files"][0]["bytes"] == (tmp_path / "out" / "onnx" / "model.onnx").stat().st_size
    assert report["model_bytes_dense"] == 4 * tiny_model("bert").num_parameters()
    assert report["largest_difference"] < 1e-4
    again = cli(
        "export", folder, "-o", tmp_path / "out", "--overwrite", "--config", tmp_path / "out" / "projclust_options.yaml"
    )
    assert again.code == 0, again.err
    assert "model.onnx" in again.out
    assert snapshot(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--body", "int3"], "--body must be one of float32, int8, int4, not 'int3'"),
        (["--body", "int8,"], "--body must be one of float32, int8, int4, not ''"),
        (["--to", "gguf"], "gguf"),
        (["--revision", "main"], "--revision is for models on the Hub"),
    ],
)
def test_wrong_options(refused: Refused, folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused("export", folder, "-o", tmp_path / "out", *arguments)


def test_folders_that_are_in_the_way(refused: Refused, folder: Path, tmp_path: Path) -> None:
    assert "--output" in refused("export", folder)
    assert "overlap" in refused("export", folder, "-o", folder / "onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert "exists" in refused("export", folder, "-o", tmp_path / "full")
    assert "was not written by projclust" in refused("export", folder, "-o", tmp_path / "full", "--overwrite")
    assert "there is no model folder" in refused("export", tmp_path / "none", "-o", tmp_path / "out")


def test_models_without_a_graph(refused: Refused, tmp_path: Path) -> None:
    compressed_model("t5", "auto").save_pretrained(tmp_path / "t5")
    message = refused("export", tmp_path / "t5", "-o", tmp_path / "out")
    assert "T5ForConditionalGeneration has an encoder and a decoder" in message
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    hf.ViTModel(hf.ViTConfig(**shape)).save_pretrained(tmp_path / "vit")
    assert "ViTModel cannot be exported" in refused("export", tmp_path / "vit", "-o", tmp_path / "out")
    bert = hf.BertForNextSentencePrediction(hf.BertConfig(vocab_size=VOCABULARY, **shape))
    bert.save_pretrained(tmp_path / "nsp")
    assert "BertForNextSentencePrediction cannot be exported" in refused(
        "export", tmp_path / "nsp", "-o", tmp_path / "out"
    )


def test_a_model_that_another_method_quantized(refused: Refused, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "is quantized by gptq" in refused("export", folder, "-o", tmp_path / "out")


def test_a_graph_that_differs_from_the_model_is_not_written(
    refused: Refused, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projclust.onnx_export.check, "TOLERANCE", 1e-9)
    assert "differ by" in refused("export", folder, "-o", tmp_path / "out")


def test_a_model_that_torch_cannot_export(
    refused: Refused, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if float(hidden.sum()) > 0 else -hidden

    monkeypatch.setattr(hf.models.bert.modeling_bert.BertPredictionHeadTransform, "forward", forward)
    assert "BertForMaskedLM cannot be exported: " in refused("export", folder, "-o", tmp_path / "out")


def test_the_extra_is_missing(refused: Refused, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projclust.onnx_export.needs, "find_spec", lambda name: None if name == "onnxscript" else 1)
    message = refused("export", folder, "-o", tmp_path / "out")
    assert message == "error: export needs onnxscript: pip install projclust[onnx]"


def test_torch_is_too_old(refused: Refused, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projclust.onnx_export.needs, "version", lambda name: "2.7.1")
    assert "export needs torch 2.8 or later, not 2.7.1" in refused("export", folder, "-o", tmp_path / "out")


def test_nan_weights_are_refused(refused: Refused, tmp_path: Path) -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    assert "differ by" in refused("export", tmp_path / "model", "-o", tmp_path / "out")


def test_inspects_a_folder_of_graphs(cli: Cli, refused: Refused, folder: Path, tmp_path: Path) -> None:
    written = cli("export", folder, "-o", tmp_path / "out", "--body", "float32,int8", "--format", "json").json
    shown = cli("inspect", tmp_path / "out", "--format", "json").json
    assert [{**file, "opset": written["opset"]} for file in written["files"]] == shown["graphs"]
    for name in ("model_class", "task", "model_bytes_dense"):
        assert shown[name] == written[name], name
    read = cli("inspect", tmp_path / "out").out
    for file in written["files"]:
        assert file["path"] in read
    assert f"next: projclust push {tmp_path / 'out'} REPO" in read
    parts = shown["download"]
    assert parts["graph"]["bytes"] == min(file["bytes"] for file in written["files"])
    assert parts["other"]["bytes"] == sum((tmp_path / "out" / name).stat().st_size for name in ("config.json",))
    # Beside weights, they are lines more.
    (tmp_path / "out" / "onnx").rename(folder / "onnx")
    beside = cli("inspect", folder, "--format", "json").json
    assert (beside["graphs"], beside["compressed"]) == (shown["graphs"], True)
    assert "onnx/model_quantized.onnx" in cli("inspect", folder).out
    assert "holds no safetensors weights" in refused("inspect", tmp_path / "out")
    (folder / "onnx" / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "model.onnx is not a readable ONNX file" in refused("inspect", folder)
