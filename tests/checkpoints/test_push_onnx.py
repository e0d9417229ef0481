"""Pushing ONNX files: alone, beside the weights of a checkpoint, and to where others' weights are."""

import re
import shutil
from pathlib import Path

import onnx_graphs  # noqa: F401, which skips where torch is too old
import pytest
from checkpoints.test_push import REPO, as_published, files_at, one_line, push
from hub_server import WRITER, Hub, Program
from tiny_models import VOCABULARY, tiny_model
from transformers import AutoModel
from weights.tiny_tokenizers import wordpiece

from projclust.cli.app import run
from projclust.jobs.export import export_checkpoint
from projclust.jobs.options import ExportOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `dense`, `compressed`, and what of it was exported, `exported`."""
    root = tmp_path_factory.mktemp("models")
    tiny_model("bert").save_pretrained(root / "dense")
    wordpiece(*(f"w{row}" for row in range(5, VOCABULARY))).save_pretrained(root / "dense")
    assert run(["compress", str(root / "dense"), "--k", "3", "--j", "5", "-o", str(root / "compressed")]) == 0
    export_checkpoint(ExportOptions(str(root / "compressed"), output=str(root / "exported"), body="float32,int8"))
    return root


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    """A folder of ONNX files that a test may change."""
    return Path(shutil.copytree(made / "exported", tmp_path / "exported"))


@pytest.fixture
def both(made: Path, tmp_path: Path) -> Path:
    """A compressed checkpoint with graphs beside it."""
    shutil.copytree(made / "compressed", tmp_path / "both")
    return Path(shutil.copytree(made / "exported" / "onnx", tmp_path / "both" / "onnx")).parent


def test_a_folder_of_graphs_arrives_whole(hub: Hub, program: Program, exported: Path) -> None:
    outcome = push(program, exported, REPO)
    assert outcome.err == ""
    assert files_at(hub) == as_published(exported)
    wanted = {"README.md", "config.json", "onnx/model.onnx", "onnx/model_quantized.onnx", "tokenizer.json"}
    assert wanted < set(files_at(hub))
    assert not [name for name, content in files_at(hub).items() if str(exported.parent).encode() in content]
    assert push(program, exported, REPO).json["changed"] is False
    shown, here = (program("inspect", where, "--format", "json").json for where in (REPO, exported))
    assert {**shown, "path": str(exported)} == here
    assert {graph["body"] for graph in shown["graphs"]} == {"float32", "int8"}
    assert program("inspect", REPO).out.endswith("next: its card shows how to load it\n")


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_graphs_never_touch_what_belongs_to_the_weights_of_a_repository(
    hub: Hub, program: Program, made: Path, exported: Path, weights: str
) -> None:
    hub.add(REPO, made / "compressed")
    files = hub.repositories[REPO].files
    files[weights] = files.pop("model.safetensors")
    before = dict(files)
    listed = push(program, exported, REPO, "--dry-run")
    outcome = push(program, exported, REPO)
    graphs = {f"onnx/{path.name}": path.read_bytes() for path in (exported / "onnx").iterdir()}
    assert files_at(hub) == before | graphs
    assert outcome.err == (
        f"warning: {REPO} holds weights, with a config, tokenizer and card of their own: only onnx/ is pushed\n"
    )
    assert {file["path"] for file in outcome.json["files"]} == set(graphs)
    assert outcome.json["bytes"] == sum(map(len, graphs.values()))
    assert {file["path"] for file in listed.json["files"]} > set(graphs)


def test_weights_never_remove_graphs(hub: Hub, program: Program, made: Path, exported: Path) -> None:
    push(program, exported, REPO)
    told = push(program, made / "compressed", REPO).err
    assert told.startswith(f"warning: {REPO} keeps onnx/model.onnx, onnx/model_quantized.onnx, which may be of other")
    graphs = {f"onnx/{path.name}" for path in (exported / "onnx").iterdir()}
    assert set(files_at(hub)) == set(as_published(made / "compressed")) | graphs
    again = push(program, exported, REPO)  # which is there already
    assert again.json["changed"] is False
    assert "only onnx/ is pushed" in again.err


def test_a_checkpoint_with_graphs_is_pushed_with_both(hub: Hub, program: Program, both: Path, tmp_path: Path) -> None:
    before = (both / "README.md").read_text()
    assert push(program, both, REPO).err == ""
    assert set(files_at(hub)) == set(as_published(both))
    card = files_at(hub)["README.md"].decode()
    for part in ("BertForMaskedLM.from_pretrained", 'InferenceSession("path/onnx/', 'pipeline("fill-mask"'):
        assert part in card
    for graph in (both / "onnx").iterdir():
        body = {"model.onnx": "float32", "model_quantized.onnx": "int8"}[graph.name]
        assert f"| `onnx/{graph.name}` | {body} | {graph.stat().st_size:,} |" in card
    # What else the card says is as it was, the sources last, and a second time adds nothing.
    section = re.compile(r"\n<!-- projclust export: begin -->.*<!-- projclust export: end -->\n", re.DOTALL)
    assert section.sub("", card) == before
    assert card.index("## Load it without projclust") < card.index("## Source")
    (both / "README.md").write_text(card)
    assert push(program, both, REPO).json["changed"] is False
    downloaded = tmp_path / "downloaded"
    for name, content in files_at(hub).items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    AutoModel.from_pretrained(downloaded)
    shown, here = (program("inspect", where, "--format", "json").json for where in (REPO, both))
    assert shown["compressed"] is True
    assert shown["download"] == here["download"]


def test_a_card_of_ones_own(hub: Hub, program: Program, both: Path) -> None:
    (both / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (both / "modules.json").write_text("[]")
    push(program, both, REPO)
    card = files_at(hub)["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n# Mine\n\n<!-- projclust export: begin -->\n")
    (both / "README.md").unlink()
    push(program, both, f"{REPO}-bare")
    assert "README.md" not in files_at(hub, f"{REPO}-bare")


def test_damaged_graphs_are_not_pushed(hub: Hub, program: Program, exported: Path, both: Path) -> None:
    for folder in (exported, both):
        graph = folder / "onnx" / "model_quantized.onnx"
        content = graph.read_bytes()
        for damaged in (content[:-50], content[: len(content) // 2], b"", b"<html>", b"\xff" * 100):
            graph.write_bytes(damaged)
            message = one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 2)
            assert "model_quantized.onnx is not a readable ONNX file: export the model again" in message
    shutil.rmtree(exported / "onnx")
    assert "holds no safetensors weights" in one_line(program("push", exported, REPO, HF_TOKEN=WRITER), 2)
    assert hub.seen == []
