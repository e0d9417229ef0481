"""How the time of a fit grows with n, d, k and j, and shrinks with processes.

    python benchmarks/large_table.py models/mpnet models/large
    python benchmarks/bench_scaling.py models/large [--device cpu] [--plots docs/images]

Each fit runs in a process of its own on a memory map of the table. On a CPU the comparison of one and two processes
gives each process one core. Without a folder the table is a synthetic one, written to a temporary file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from bench_tables import read_table, synthetic_table
from machine import Machine, add_machine_options, machine_of
from process_memory import RETURN_MEMORY, extra_memory
from safetensors.torch import save_file

from projclust import ProjectiveClustering
from projclust.shapes import FactoredShape

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LARGE, WIDTH, K, J = 262144, 640, 32, 160


@dataclass(frozen=True)
class Case:
    """The leading n rows and d columns of the table, and what is fitted to them."""

    n: int
    d: int
    k: int
    j: int


def fit_once(folder: Path, case: Case, device: str) -> dict[str, Any]:
    """What one fit takes and reaches; with the other processes of torchrun, if there are any."""
    together = "RANK" in os.environ
    if together:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    table = read_table(folder)[: case.n, : case.d]
    if device == "cpu" and "LOCAL_RANK" in os.environ:  # one of several processes, each on a core of its own
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    ProjectiveClustering(4, 64, device=device).fit(torch.randn(4096, 256))  # the libraries' own buffers
    clustering = ProjectiveClustering(
        case.k, case.j, device=device, process_group=dist.group.WORLD if together else None
    )
    started = time.perf_counter()
    used = extra_memory(lambda: clustering.fit(table), interval=0.01)
    seconds = time.perf_counter() - started
    if together:
        dist.destroy_process_group()
    if device == "cuda":
        used = torch.cuda.max_memory_allocated()
    table_bytes = case.n * case.d * table.itemsize
    # On a CPU the mapped table itself is no anonymous memory.
    tables = used / table_bytes + (device == "cpu")
    return {"seconds": seconds, "inertia": clustering.inertia_, "steps": clustering.n_iter_, "tables": tables}


def measured(folder: Path, case: Case, device: str, processes: int = 1, cores: int | None = None) -> dict[str, Any]:
    """`fit_once` in processes of their own; `cores` pins each process to that many."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    if cores is not None:
        launcher = ["taskset", "-c", f"0-{processes * cores - 1}", *launcher]
    sizes = [str(value) for value in (case.n, case.d, case.k, case.j)]
    command = [*launcher, __file__, str(folder), "--device", device, "--case", *sizes]
    # Giving memory back at once costs time: only where it is memory that is compared.
    environment = {**os.environ, **(RETURN_MEMORY if cores is None else {"OMP_NUM_THREADS": str(cores)})}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result


def cases(quick: bool) -> tuple[list[Case], list[Case]]:
    """Growing numbers of rows, and what else is varied."""
    if quick:
        return [Case(n, 64, 8, 16) for n in (2048, 4096)], [Case(2048, 32, 8, 16)]
    sizes = [Case(n, WIDTH, K, J) for n in (32768, 65536, 131072, LARGE)]
    others = [Case(32768, d, K, 80) for d in (160, 320, 640)]
    others += [Case(32768, 640, k, J) for k in (4, 8, 16, 64)] + [Case(32768, 640, K, j) for j in (40, 320)]
    return sizes, others


def growth(folder: Path, machine: Machine, plots: Path | None) -> None:
    """Print how the time depends on the sizes."""
    device, (sizes, others) = machine.device, cases(machine.quick)
    rate = machine.matrix_rate(sizes[0].d)
    print(f"{machine.name}, matrix rate {rate / 1e9:.0f} GFLOP/s\n")
    print("| n | d | k | j | seconds | step floors | steps | peak memory, tables |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    seconds = {}
    for case in [*sizes, *others]:
        found = measured(folder, case, device)
        seconds[case] = found["seconds"]
        floor = 2 * case.n * case.d * (case.k * case.j + case.d) / rate
        print(
            f"| {case.n:,} | {case.d} | {case.k} | {case.j} | {found['seconds']:.1f} | {found['seconds'] / floor:.1f} "
            f"| {found['steps']} | {found['tables']:.2f} |",
            flush=True,
        )
    times = seconds[sizes[-1]] / seconds[sizes[0]]
    least, most = sizes[0].n, sizes[-1].n
    print(f"\nFrom n = {least:,} to {most:,}, {most // least} times the rows, the time grows {times:.1f} times.")
    if plots is not None:
        _plot(plots / f"solver_rows_{device}.png", {case.n: seconds[case] for case in sizes}, "rows of the table")


def processes(folder: Path, plots: Path | None) -> None:
    """Print what a second process on a second core gains."""
    table = read_table(folder)
    n, d = min(len(table), 65536), table.shape[1]
    rank = FactoredShape(n, d, k=4, j=1).largest_rank(lambda shape: shape.compression_rate >= 0.4)
    assert rank is not None
    case = Case(n, d, k=4, j=rank)
    print(f"\n{case.n:,} x {case.d}, k={case.k}, j={case.j}\n")
    print("| processes, one core each | seconds | times faster | cost |\n| ---: | ---: | ---: | ---: |")
    seconds: dict[int, float] = {}
    for count in (1, 2):
        found = measured(folder, case, "cpu", count, cores=1)
        seconds[count] = found["seconds"]
        print(
            f"| {count} | {found['seconds']:.1f} | {seconds[1] / found['seconds']:.2f} | {found['inertia']:.9g} |",
            flush=True,
        )
    if plots is not None:
        _plot(plots / "solver_processes.png", seconds, "processes, one core each", falling=True)


def _plot(path: Path, seconds: dict[int, float], what: str, falling: bool = False) -> None:
    """Seconds against a size, and the line of a time in proportion to it (or to its inverse)."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    sizes = list(seconds)
    first = seconds[sizes[0]]
    ideal = [first * (sizes[0] / size if falling else size / sizes[0]) for size in sizes]
    axes.plot(sizes, ideal, "--", color="0.6", label="in inverse proportion" if falling else "in proportion")
    axes.plot(sizes, list(seconds.values()), "o-", label="measured")
    axes.set(xlabel=what, ylabel="seconds of a fit", ylim=(0, None))
    axes.set_xticks(sizes, [str(size) if size < 1024 else f"{size // 1024}k" for size in sizes])
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="The folder of the model whose table is fitted.")
    parser.add_argument("--plots", type=Path, help="The folder in which to put the plots.")
    parser.add_argument(
        "--part", choices=("growth", "processes"), help="Measure only this part; the second is for CPUs."
    )
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    add_machine_options(parser)
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    if arguments.case is not None:
        found = fit_once(arguments.folder, Case(*arguments.case), machine.device)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder
            if folder is None:
                folder, sizes = Path(temporary), cases(machine.quick)[0]
                made = synthetic_table(sizes[-1].n, sizes[-1].d, device=machine.device)
                save_file({"word_embeddings.weight": made}, folder / "model.safetensors")
                del made
            if arguments.part != "processes":
                growth(folder, machine, arguments.plots)
            if arguments.part != "growth" and machine.device == "cpu":
                processes(folder, arguments.plots)
