"""`glue-eval --engine ray` on a cluster of two nodes with one core each, on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from projclust.errors import OptionError, ProjclustError, ServiceError
from projclust.glue.engine import Engine
from projclust.glue.ray_engine import connected
from projclust.jobs.options import GlueEvalOptions

pytest.importorskip("ray")

TASK = ("--tasks", "demo", "--limit", "64", "--max-length", "32", "--k", "3", "--j", "6", "--restarts", "1")
TRAINING = ("--learning-rate", "1e-2", "--baseline-epochs", "1", "--epochs", "1", "--seeds", "0,1")
VARIANTS = ("--variants", "dense,projective,projective:body=int8,best")
# Results on another number of threads are not the same to the digit.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}

# A driver that starts a cluster of two nodes and, once a cell is written, kills the processes of the second.
DRIVER = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
out = Path(sys.argv[1])
def lose_a_node():
    while not list(out.glob("cells/*.json")):
        time.sleep(0.05)
    cluster.remove_node(second, allow_graceful=False)
threading.Thread(target=lose_a_node, daemon=True).start()
from projclust.cli import main
sys.argv = ["projclust", "glue-eval", *sys.argv[2:], "-o", str(out), "--engine", f"ray:{cluster.address}"]
main()
"""


def glue_eval(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from projclust.cli import main; main()", "glue-eval", *map(str, arguments)]


def rows(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@pytest.fixture(scope="module")
def here(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    out = tmp_path_factory.mktemp("ray") / "here"
    command = glue_eval(tiny_classifier, *TASK, *TRAINING, *VARIANTS, "-o", out)
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return out


@pytest.mark.timeout(600)
def test_two_nodes_of_which_one_is_lost_give_the_results_of_one_process(
    here: Path, tiny_classifier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", DRIVER, out, tiny_classifier, *TASK, *TRAINING, *VARIANTS]
    ran = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert rows(out) == rows(here)
    assert "6/6" in ran.stderr + ran.stdout
    assert not (out / "scratch").exists()
    assert not (out / "models").exists()
    # What is there is not measured again, by whichever engine.
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    again = glue_eval(tiny_classifier, *TASK, *TRAINING, *VARIANTS, "-o", out)
    subprocess.run(again, env=ENVIRONMENT, capture_output=True, check=True)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("cells/*.json")} == written
    assert rows(out) == rows(here)


@pytest.mark.timeout(600)
def test_an_interrupt_keeps_the_cells_that_are_done(tiny_classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = glue_eval(tiny_classifier, *TASK, *TRAINING, *VARIANTS, "-o", out, "--engine", "ray")
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("cells/*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(out.glob("cells/*.json"))


@pytest.mark.timeout(600)
def test_a_mistake_that_only_a_cell_can_see_is_one_line(tiny_classifier: Path, tmp_path: Path) -> None:
    command = glue_eval(tiny_classifier, *TASK, "--max-length", "4000", "-o", tmp_path / "out", "--engine", "ray")
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1].startswith("error: --max-length 4000")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("text", ["dask", "ray:", "Ray"])
def test_engines_that_there_are_not(text: str) -> None:
    with pytest.raises(OptionError, match="takes ray or ray:ADDRESS"):
        GlueEvalOptions("model", engine=text)


def test_an_engine_and_torchrun_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GlueEvalOptions("model", engine="ray:auto", cpus_per_cell=2).ray == Engine("auto", 2, 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="drop torchrun"):
        GlueEvalOptions("model", engine="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "no.such.host.invalid:6379"])
def test_a_cluster_that_does_not_answer(address: str) -> None:
    with pytest.raises(ServiceError, match=f"no Ray cluster answers at {address}"), connected(Engine(address, 1, 0.0)):
        pass


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projclust.glue.ray_engine.find_spec", lambda name: None)
    with pytest.raises(ProjclustError, match=r"pip install projclust\[ray\]"), connected(Engine(None, 1, 0.0)):
        pass
