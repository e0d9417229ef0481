"""kill -9 during `projclust glue-eval`: finished cells stay, the next run goes on, the results are those of a calm one."""

import json
import time
from pathlib import Path
from typing import Any

from killing import killed_at


def cells(out: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every finished cell."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "cells").glob("*.json")}


def results(out: Path) -> list[dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_killed_anywhere_it_goes_on_and_ends_with_the_same_results(tiny_classifier: Path, tmp_path: Path) -> None:
    options = ["--tasks", "demo", "--limit", "48", "--seeds", "0", "--k", "2", "--j", "5", "--restarts", "1"]
    options += ["--max-length", "32", "--baseline-epochs", "1", "--epochs", "1", "--learning-rate", "1e-2"]
    command = ["glue-eval", str(tiny_classifier), *options, "-o"]
    calm, out = tmp_path / "calm", tmp_path / "out"
    assert not killed_at(10**9, str(calm), [*command, str(calm)])

    kills = 0
    deadline = time.monotonic() + 200
    # Each run comes further than the one before: into the baseline, a scratch folder, a cell, the report.
    for touch in (3, 12, 25, 40, 60, 80, 110, 150):
        before = cells(out)
        if not killed_at(touch, str(out), [*command, str(out)]):
            break
        kills += 1
        after = cells(out)
        assert {name: after[name] for name in before} == before  # not measured again, not touched
        for content, _ in after.values():
            json.loads(content)
        assert time.monotonic() < deadline
    assert kills >= 4
    assert not killed_at(10**9, str(out), [*command, str(out)])
    assert results(out) == results(calm)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in calm.iterdir())
    assert not list(out.rglob("*.partial*"))
    assert not list(out.rglob(".*"))
