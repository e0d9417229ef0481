"""What lies outside of a checkpoint's folder is not read for it, not copied from it, and not told in its name."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny_models import tiny_model

from projclust import CheckpointError
from projclust.checkpoints.card import expanded_card
from projclust.checkpoints.load import load_checkpoint
from projclust.checkpoints.save import copy_side_files
from projclust.checkpoints.tensors import stored_tensors
from projclust.jobs.compress import compress_checkpoint
from projclust.jobs.inspect import inspect_checkpoint
from projclust.jobs.options import CompressOptions
from projclust.recipes.recipe import Recipe


@pytest.mark.parametrize(
    "name", ["../s.safetensors", "/elsewhere/s.safetensors", "a/s.safetensors", "..", ".", "", "a\\s"]
)
def test_a_shard_is_a_file_beside_its_index(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    model = tiny_model("bert")
    model.save_pretrained(folder)
    # There is a file where the name leads to, and one of its last part.
    (folder / "model.safetensors").rename(folder / "s.safetensors")
    save_file({"other": model.state_dict()["bert.embeddings.word_embeddings.weight"]}, tmp_path / "s.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(stored_tensors_of(folder), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for read in (load_checkpoint, lambda path: inspect_checkpoint(str(path)), stored_tensors):
        with pytest.raises(CheckpointError, match="which is no file beside it"):
            read(folder)


def stored_tensors_of(folder: Path) -> list[str]:
    return [name for name in tiny_model("bert").state_dict() if not name.startswith("cls.predictions.decoder")]


def options(model: Path, out: Path) -> CompressOptions:
    return CompressOptions(str(model), recipe=Recipe(k=3, j=5, restarts=1), output=str(out))


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer_config.json", "1_Pooling/config.json"])
def test_a_link_out_of_the_folder_is_not_copied(
    tiny_folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret" / Path(name).name
    secret.parent.mkdir()
    secret.write_text('{"token": "hf_secret"}')
    (tiny_folder / name).parent.mkdir(exist_ok=True)
    (tiny_folder / name).symlink_to(secret)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match=f"holds the link {name}, which leads out of it"):
        copy_side_files(tiny_folder, out)
    assert list(out.iterdir()) == []
    out.rmdir()
    # Before the fit, which takes a while.
    monkeypatch.setattr("projclust.jobs.compress.compress_embedding", lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(CheckpointError, match="leads out of it"):
        compress_checkpoint(options(tiny_folder, out))
    assert not out.exists()


def test_links_inside_the_folder_and_those_of_the_hubs_cache_are_followed(tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "NOTICE").symlink_to("vocab.txt")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in tiny_folder.iterdir():
        (blobs / f"blob-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    compress_checkpoint(options(snapshot, tmp_path / "out"))
    assert (tmp_path / "out" / "NOTICE").read_bytes() == (tiny_folder / "vocab.txt").read_bytes()
    assert not (tmp_path / "out" / "NOTICE").is_symlink()


def test_a_tokenizer_that_may_not_be_read_is_told_before_the_fit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable = os.access  # root may read anything
    monkeypatch.setattr(os, "access", lambda path, mode: "vocab" not in str(path) and readable(path, mode))
    monkeypatch.setattr("projclust.jobs.compress.compress_embedding", lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(CheckpointError, match=r"cannot read .*vocab\.txt: Permission denied"):
        compress_checkpoint(options(tiny_folder, tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("plain-Model_1.5", "plain-Model_1.5"),
        ("a\n# b", "a \\# b"),
        ("[x](http:b)", "\\[x\\](http:b)"),
        ("<img src=x>", "\\<img src=x\\>"),
        ("a`b*c*", "a\\`b\\*c\\*"),
        ("e\x1b[31mm\u202e", "e \\[31mm "),
    ],
)
def test_the_heading_of_a_card_is_the_name_and_no_markdown(tmp_path: Path, name: str, heading: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    card = expanded_card(str(folder), folder)
    assert [line for line in card.splitlines() if line.startswith("# ")] == [f"# {heading}, expanded"]
    assert "\x1b" not in card
    assert card.count("`") % 2 == heading.count("`") % 2
