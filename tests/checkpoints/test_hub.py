"""A model by its Hub id, downloaded over HTTP from a server of ours that speaks the few endpoints the client uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import Hub, Program, running_hub

REPO = "someone/tiny-bert"


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[Hub]:
    (tiny_folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Tiny\n")
    (tiny_folder / "pytorch_model.bin").write_bytes(b"a pickle nobody should download")
    with running_hub() as running:
        running.add(REPO, tiny_folder)
        yield running


@pytest.fixture
def projclust(hub: Hub, tmp_path: Path) -> Iterator[Program]:
    program = Program(hub, tmp_path / "home")
    yield program
    program.close()


def test_a_model_on_the_hub_is_downloaded_compressed_and_named_in_the_card(projclust: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = projclust("compress", REPO, "--k", 3, "--j", 5, "-o", out, "--format", "json")
    assert result.code == 0, result.err
    assert result.err == ""
    assert result.json["model"] == REPO
    card = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert card["base_model"] == REPO
    assert card["base_model_relation"] == "quantized"
    assert (card["license"], card["language"]) == ("mit", "en")
    assert f"(https://huggingface.co/{REPO})" in (out / "README.md").read_text()
    assert (out / "vocab.txt").is_file()
    assert not list(projclust.home.rglob("*.bin"))
    assert projclust("inspect", REPO, "--format", "json").json["compressed"] is False


def test_a_model_the_hub_does_not_have(projclust: Program, tmp_path: Path) -> None:
    result = projclust("compress", "someone/absent", "--j", 5, "-o", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith("error: someone/absent is neither a local folder nor a model on the Hub")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
