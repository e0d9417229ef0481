"""What may not be read or replaced, and names that no file can have: one line before any work."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commandline import Cli, snapshot
from safetensors.torch import load_file, save_file

Refused = Callable[..., str]

# The powers of root to read, write and change what it may not.
_POWERS = (1, 2, 3)


def without_powers() -> None:
    """In a child that is about to begin: root is then held to permissions like everybody."""
    if os.geteuid() == 0:
        drop = ctypes.CDLL(None).prctl
        for power in _POWERS:
            drop(24, power, 0, 0, 0)


def error_of(*arguments: object) -> str:
    """The one line of a run that is refused, by somebody who is held to permissions."""
    program = [sys.executable, "-c", "from projclust.cli import main; main()", *map(str, arguments)]
    result = subprocess.run(
        program, capture_output=True, text=True, timeout=120, check=False, preexec_fn=without_powers
    )
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def forbidden() -> Iterator[Callable[[Path, int], None]]:
    """Set permissions of a path for the length of a test."""
    before: dict[Path, int] = {}

    def forbid(path: Path, mode: int) -> None:
        before[path] = path.stat().st_mode
        path.chmod(mode)

    yield forbid
    for path, mode in before.items():
        path.chmod(mode)


@pytest.mark.skipif(sys.platform != "linux", reason="root's powers are dropped as on Linux")
@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors", "vocab.txt"])
def test_what_may_not_be_read_is_named(
    tiny_folder: Path, tmp_path: Path, forbidden: Callable[[Path, int], None], name: str
) -> None:
    forbidden(tiny_folder / name, 0)
    message = f"error: cannot read {tiny_folder / name if name else tiny_folder}: Permission denied\n"
    assert error_of("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out") == message
    if name != "vocab.txt":
        assert error_of("inspect", tiny_folder) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="root's powers are dropped as on Linux")
@pytest.mark.parametrize("inside", ["", "1_Pooling"])
def test_a_folder_that_cannot_be_replaced_is_told_before_the_work(
    cli: Cli, tiny_folder: Path, tmp_path: Path, forbidden: Callable[[Path, int], None], inside: str
) -> None:
    (tiny_folder / "1_Pooling").mkdir()
    (tiny_folder / "1_Pooling" / "config.json").write_text("{}")
    out = tmp_path / "out"
    assert cli("compress", tiny_folder, "--k", 3, "--j", 5, "-o", out).code == 0
    before = snapshot(tmp_path)
    forbidden(out / inside, 0o555)
    assert "is not writable, so --overwrite cannot replace it" in error_of(
        "compress", tiny_folder, "--k", 3, "--j", 5, "-o", out, "--overwrite"
    )
    assert snapshot(tmp_path) == before


def test_a_file_elsewhere_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    from projclust.checkpoints.folder import cannot_write

    out, home = tmp_path / "out", tmp_path.parent / "home" / ".cache"
    elsewhere = PermissionError(13, "Permission denied", str(home))
    assert str(cannot_write(out, elsewhere)) == f"cannot use {home}: Permission denied"
    for name in (out / "model.safetensors", tmp_path, tmp_path / ".out.partial-12345678" / "new"):
        message = str(cannot_write(out, PermissionError(13, "Permission denied", str(name))))
        assert message.startswith(f"cannot write {out}: Permission denied; choose another --output")


def test_names_that_no_file_can_have(
    refused: Refused, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a\0b", os.fsdecode(b"a\xffb")):
        for command in (
            ("compress", tiny_folder, "--j", 5, "-o", name),
            ("plan", tiny_folder, "-o", name),
            ("expand", tiny_folder, "-o", name),
            ("glue-eval", tiny_folder, "-o", name),
            ("report", tiny_folder, "-o", name),
            ("compress", name, "--j", 5, "-o", "out"),
            ("inspect", name),
        ):
            assert "is not UTF-8 text" in refused(*command)
    (tmp_path / "nul.yaml").write_text('output: "a\\0b"\n')
    assert "is not UTF-8 text" in refused("compress", tiny_folder, "--j", 5, "--config", "nul.yaml")


def test_links_that_lead_in_a_circle(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    for output in (tmp_path / "there", tmp_path / "there" / "out"):
        for command in (("compress", tiny_folder, "--j", 5), ("plan", tiny_folder), ("glue-eval", tiny_folder)):
            message = refused(*command, "-o", output)
            assert "lead in a circle" in message or "is not a folder" in message
    assert "no model folder" in refused("inspect", tmp_path / "there")


def test_a_tensor_whose_name_transformers_cannot_save(
    refused: Refused, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_folder / "model.safetensors"
    save_file(load_file(file) | {"cls.x[2": torch.zeros(3)}, file, metadata={"format": "pt"})
    monkeypatch.setattr("projclust.jobs.compress.compress_embedding", lambda *_: pytest.fail("it was fitted"))
    assert "holds a tensor named 'cls.x[2'" in refused("compress", tiny_folder, "--j", 5, "-o", tmp_path / "out")


def test_what_is_no_cell_is_refused_before_any_measurement(
    cli: Cli, tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projclust.jobs.glue_eval.measure", lambda *_: pytest.fail("it was measured"))
    out = tmp_path / "out"
    (out / "cells" / "folder.json").mkdir(parents=True)
    for name in ("folder.json", "foreign.json"):
        if name == "foreign.json":
            (out / "cells" / "folder.json").rmdir()
            (out / "cells" / name).write_text("notes")
        before = sorted(tmp_path.rglob("*"))
        outcome = cli("glue-eval", tiny_classifier, "--tasks", "demo", "--j", 5, "--max-length", 32, "-o", out)
        assert outcome.code == 2
        assert f"{name}" in outcome.err
        assert "delete it" in outcome.err
        assert sorted(tmp_path.rglob("*")) == before


def test_glue_eval_that_refuses_at_once_leaves_nothing(refused: Refused, tiny_classifier: Path, tmp_path: Path) -> None:
    options = ("--tasks", "cola", "--variants", "dense", "-o", tmp_path / "out")
    refused("glue-eval", tiny_classifier, "--glue-dir", tmp_path / "absent", *options)
    assert not (tmp_path / "out").exists()
    refused("glue-eval", tiny_classifier, *options[2:], "--tasks", "demo", "--max-length", 128)
    assert not (tmp_path / "out").exists()
