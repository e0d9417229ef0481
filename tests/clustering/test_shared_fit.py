"""Two processes (gloo) share the rows of one fit: the same labels and cost as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Fits a matrix with decaying spectrum in several ways; the first process writes what was found.
PROGRAM = """
import json, sys
import torch
import torch.distributed as dist
from projclust import ProjectiveClustering

def fits(group):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3001, 32, generator=generator, dtype=torch.float64)
    table = table @ torch.diag(0.9 ** torch.arange(32).double())
    weights = torch.rand(3001, generator=generator)
    for k, j, options in [
        (5, 6, {}), (5, 6, {"affine": True}), (3, 8, {"init": "residual"}), (60, 4, {}),
        (5, 6, {"ranks": "adaptive"}), (3, 5, {"loss": "l1"}), (1, 7, {}), (4, 6, {"method": "random"}),
    ]:
        fitted = ProjectiveClustering(k, j, process_group=group, **{"restarts": 2, **options}).fit(table, sample_weight=weights)
        yield {
            "labels": fitted.labels_.tolist(), "inertia": fitted.inertia_, "history": fitted.cost_history_,
            "residuals": float(fitted.residuals_.sum()), "coefficients": float(fitted.coefficients_.square().sum()),
            "components": float(fitted.components_.abs().sum()), "ranks": fitted.ranks_,
        }

torch.set_num_threads(1)
together = len(sys.argv) > 2
if together:
    dist.init_process_group("gloo")
found = list(fits(dist.group.WORLD if together else None))
if not together or dist.get_rank() == 0:
    json.dump(found, open(sys.argv[1], "w"))
if together:
    dist.barrier()
    dist.destroy_process_group()  # nothing refers to it any more: torch may abort if one lives on to the end
"""


def outcome(processes: int, tmp_path: Path) -> list[dict[str, Any]]:
    program, out = tmp_path / "program.py", tmp_path / f"{processes}.json"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = [*torchrun, program, out, "together"] if processes > 1 else [sys.executable, program, out]
    command = list(map(str, launcher))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return outcome(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_find_what_one_finds(
    processes: int, of_one_process: list[dict[str, Any]], tmp_path: Path
) -> None:
    for alone, together in zip(of_one_process, outcome(processes, tmp_path), strict=True):
        assert together["inertia"] == pytest.approx(alone["inertia"], rel=1e-6)
        assert together["history"] == pytest.approx(alone["history"], rel=1e-6)
        assert together["ranks"] == alone["ranks"]
        # In float64 only the order of summation differs, which no label of these rows hangs on.
        assert torch.equal(torch.tensor(together["labels"]), torch.tensor(alone["labels"]))
        for name in ("residuals", "coefficients", "components"):
            assert together[name] == pytest.approx(alone[name], rel=1e-6)
