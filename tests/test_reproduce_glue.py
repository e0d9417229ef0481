"""scripts/reproduce_glue.sh with a tiny model on the demonstration task: parts side by side, and one report."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from projclust.glue.settings import parse_per_task
from projclust.glue.variants import parse_variants
from projclust.recipes.recipe import Recipe
from projclust.shapes import DenseShape

ROOT = Path(__file__).parents[1]
TINY = ("--limit", 32, "--k", 2, "--j", 5, "--restarts", 1, "--max-length", 32, "--baseline-epochs", 1, "--epochs", 1)


def reproduce(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PROJCLUST": f"{sys.executable} -m projclust", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts" / "reproduce_glue.sh"), *map(str, options)]
    return subprocess.run(command, env={**os.environ, **own, **environment}, capture_output=True, text=True)


def test_parts_become_one_report_and_only_what_is_missing_is_measured(tiny_classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start = ["--model", tiny_classifier, "--device", "cpu", "--jobs", 2, "--tasks", "demo", "--rows", "demo=48"]
    start += ["-o", out]
    variants = ("--", *TINY[2:], "--variants", "dense,projective")
    assert reproduce(*start, "--seeds", 1, *variants).returncode == 0
    first = {path: path.stat().st_mtime_ns for path in out.glob("parts/demo-1/cells/*.json")}
    assert len(first) == 2
    done = reproduce(*start, "--seeds", "0,1", *variants)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in first} == first
    rows: list[dict[str, Any]] = json.loads((out / "report" / "results.json").read_text())["rows"]
    assert sorted((row["seed"], row["variant"], row["limit"]) for row in rows) == [
        (seed, variant, 48) for seed in (0, 1) for variant in ("dense", "projective")
    ]
    assert "mean of 2 seeds" in done.stdout


def test_a_part_that_cannot_be_is_told(tiny_classifier: Path, tmp_path: Path) -> None:
    start = ("--model", tiny_classifier, "--device", "cpu", "--tasks", "demo", "--seeds", 0, "-o", tmp_path / "out")
    done = reproduce(*start, "--", *TINY, "--variants", "dense,sdv")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no variant 'sdv'")
    done = reproduce(*start, "--seconds", 1, "--", *TINY)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("not finished: demo-0;")


@pytest.mark.parametrize(
    "options",
    [
        *(("--form", "bert"), ("--device", "tpu"), ("--jobs", 0), ("--seconds", "soon")),
        *(("--rows", "demo"), ("--seeds", "zero"), ("--fast",), ("-o",)),
    ],
)
def test_refuses_what_it_does_not_know(options: tuple[object, ...], tmp_path: Path) -> None:
    done = reproduce(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert reproduce("-o", tmp_path / "out", PROJCLUST="no-such-program").stderr.startswith("error: 'no-such-program'")


@pytest.mark.parametrize("name", ["glue_proof", "glue_proof_roberta"])
def test_its_configs_are_what_their_comments_say(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    variants = parse_variants(config["variants"], Recipe(k=config["k"], ratio=config["ratio"]), DenseShape(30522, 384))
    measured = sum(variant.name != "best" for variant in variants)
    assert f"epochs x {measured} variants" in text
    for task, own in parse_per_task(tuple(config["per-task"])).items():
        epochs = own.get("baseline_epochs", config["baseline-epochs"]) + config["epochs"] * measured
        assert f" x {epochs} x 3 = " in text, task
