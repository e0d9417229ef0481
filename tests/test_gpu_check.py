"""scripts/gpu_check.sh on the CPU: that every part of it runs, and what it writes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = [
    "Tests on the device",
    "The solver",
    "A large table",
    "Coding",
    "Coding a table of many languages",
    "Lookups and output heads",
    "Coded lookups and output heads",
]


def check(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, by this interpreter, as one would call it outside a test."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    own |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *options]
    return subprocess.run(command, env=own, capture_output=True, text=True)


def results(report: str) -> dict[str, str]:
    """Of each step, by its title."""
    return dict(re.findall(r"^\| ([A-Z][^|]*?) \| (.*?) \| \d+ \|$", report, re.MULTILINE))


def test_every_step_runs_and_is_in_the_report(tmp_path: Path) -> None:
    done = check("--device", "cpu", "--quick", "-o", str(tmp_path / "report.md"))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert done.returncode == 0, report
    assert results(report) == dict.fromkeys(SECTIONS, "passed")
    assert re.findall(r"^#### (.*)$", report, re.MULTILINE) == SECTIONS
    assert report.startswith("### ")
    assert re.search(r"\d{4}-\d\d-\d\d, .*torch \S+, Python \S+, numpy \S+, transformers ", report)
    for said in (
        r"\| default fit \| .* step floors",
        r"\| fit and encode \| .* x the floor",
        r"\| lookup, 1 x 16 \|(.*\|){4} [\d.]+ \|",
        r"\| tied head, 1 \|(.*\|){4} [\d.]+ \|",
        r"\d+ passed",
    ):
        assert re.search(said, report), said


def test_a_step_that_fails_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no torch today')")
    done = check("--device", "cpu", "--quick", "-o", str(tmp_path / "report.md"), PYTHONPATH=str(broken))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert done.returncode == 1
    assert list(results(report)) == SECTIONS
    assert all(result.startswith("failed") for result in results(report).values())
    assert report.count("no torch today") >= len(SECTIONS) - 1


@pytest.mark.parametrize("options", [["--device", "tpu"], ["--fast"], ["-o"]])
def test_refuses_what_it_does_not_know(options: list[str]) -> None:
    done = check(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_benchmarks_need_no_more_than_is_installed_there() -> None:
    others = ("sklearn", "scipy", "matplotlib", "datasets", "evaluate", "typer", "wordfreq")
    code = f"import sys; sys.modules |= dict.fromkeys({others}); import bench_solver, bench_codes, bench_lookup"
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
