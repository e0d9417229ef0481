"""Benchmarks that measure many things: on a cluster of Ray they print what they print here."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_model

ROOT = Path(__file__).parents[1]


def printed(*arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "plan_models.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def test_plans_of_many_models_are_the_same_on_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folders = [tmp_path / name for name in ("bert", "gpt2")]
    for folder in folders:
        tiny_model(folder.name).save_pretrained(folder)
    here = printed(*folders, "--bits", "8,6")
    assert [line.split(" | ")[0] for line in here.splitlines()[2:]] == [f"| {folder}" for folder in folders]
    assert printed(*folders, "--bits", "8,6", "--engine", "ray") == here
