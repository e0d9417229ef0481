"""kill -9 at any moment leaves the old state or the new one, and the next run cleans up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from commandline import Cli
from killing import killed_at

from projclust.checkpoints.load import load_checkpoint


def state(folder: Path) -> tuple[int, int] | None:
    if not folder.exists():
        return None
    embedding = load_checkpoint(folder).model.get_input_embeddings()
    assert torch.isfinite(embedding.weight).all()
    report = json.loads((folder / "projclust_report.json").read_text())
    assert (report["k"], report["j"]) == (embedding.n_clusters, embedding.rank)
    return embedding.n_clusters, embedding.rank


def test_killed_anywhere_the_folder_is_old_or_new(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = ["compress", str(tiny_folder), "-o", str(out), "--restarts", "1", "--overwrite"]
    old, new = (2, 4), (3, 5)
    seen = set()
    # The first touches, some in the middle, and the last ones, around the exchange of the folders.
    for call in (1, 2, 7, 15, *range(24, 60, 3)):
        if state(out) != old:
            assert cli(*run, "--k", old[0], "--j", old[1]).code == 0
        was_killed = killed_at(call, ".partial-", [*run, "--k", str(new[0]), "--j", str(new[1])])
        seen.add(state(out))
        assert state(out) in (old, new)
        if not was_killed:
            assert state(out) == new
            break
    assert seen == {old, new}
    assert cli(*run, "--k", old[0], "--j", old[1]).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny-bert"]


def test_killed_at_random_times_before_a_first_result(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = [sys.executable, "-c", "from projclust.cli import main; main()", "compress", str(tiny_folder)]
    for delay in (1.0, 3.0, 5.0):
        process = subprocess.Popen(
            [*program, "--k", "3", "--j", "5", "-o", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        time.sleep(delay)
        process.kill()
        process.wait()
        if state(out) is not None:
            break
    assert state(out) in (None, (3, 5))
