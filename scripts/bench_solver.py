"""Time, memory and cost of the solver on a real table, against the hardware's floor and simpler settings.

    python scripts/bench_solver.py MODEL_FOLDER [--k 4] [--j 418]

Prints one step's time over its floor (2ndkj + 2nd^2 operations at the matrix rate measured here), the peak memory of a
fit over the table's bytes, and the final costs of simpler ways to start. The table comes straight from the folder's
safetensors file; the memory is read in a process that holds nothing else.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

import projclust.clustering.estimator as estimator_module
from projclust import ProjectiveClustering
from projclust.clustering.seeding import random_partition
from projclust.clustering.subspaces import assign_rows, fit_subspaces, squared_norms


def read_table(folder: Path) -> Tensor:
    """The word embedding of a BERT-like checkpoint."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith("word_embeddings.weight"))  # noqa: SIM118
        table: Tensor = file.get_tensor(name)
    return table


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The median time of `work`, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[repeats // 2]


def matrix_rate(d: int) -> float:
    """Measured float32 operations a second of a product of the solver's shape."""
    left, right = torch.randn(4096, d), torch.randn(d, 4 * d)
    return 2 * left.numel() * right.shape[1] / seconds(lambda: left @ right, repeats=9)


def anonymous_memory() -> int:
    """Bytes this process holds that are not pages of files (libraries, the mapped checkpoint); Linux only."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def report_memory(folder: Path, k: int, j: int) -> None:
    """In a process of its own: peak memory during a fit, less what the process had before it held the table."""
    warm_up = torch.randn(2048, 256)
    ProjectiveClustering(2, 4, restarts=1).fit(warm_up)  # the libraries' own buffers
    before = peak = anonymous_memory()
    table = read_table(folder).clone()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    ProjectiveClustering(k, j, restarts=1).fit(table)
    done.set()
    watcher.join()
    used = peak - before
    print(f"| peak memory of a fit, the table included | {used / 1e6:.0f} MB = {used / table.nbytes:.2f} tables |")


def main(folder: Path, k: int, j: int) -> None:
    """Print the table of figures."""
    table = read_table(folder)
    n, d = table.shape
    total = float(table.double().square().sum())
    norms = squared_norms(table)
    labels = random_partition(n, k, torch.Generator().manual_seed(0))
    subspaces = fit_subspaces(table, None, labels, k, j, affine=False)

    print(f"{n} x {d}, k={k}, j={j}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | measured |\n| --- | --- |")
    rate = matrix_rate(d)
    floor = (2 * n * d * k * j + 2 * n * d * d) / rate
    fit = seconds(lambda: fit_subspaces(table, None, labels, k, j, affine=False))
    assign = seconds(lambda: assign_rows(table, norms, subspaces))
    print(f"| matrix rate | {rate / 1e9:.0f} GFLOP/s |")
    print(f"| one step (fit + assign) | {fit:.2f} + {assign:.2f} s, {(fit + assign) / floor:.2f} x its floor |")

    started = time.perf_counter()
    fitted = ProjectiveClustering(k, j).fit(table)
    elapsed = time.perf_counter() - started
    steps = elapsed / floor
    print(f"| default fit | {elapsed:.1f} s = {steps:.0f} step floors, relative error {fitted.inertia_ / total:.4f} |")
    subprocess.run([sys.executable, __file__, str(folder), "--k", str(k), "--j", str(j), "--memory"], check=True)

    ranks_of_the_solver = {name: getattr(estimator_module, name) for name in ("_SCOUTING_RANKS", "_CLIMBING_RANKS")}
    for name, init, restarts, climb in (
        ("one start", "spherical", 1, True),
        ("residual seeding, one start", "residual", 1, True),
        ("random start", "random", 1, True),
        ("one start, full rank from the first step on", "spherical", 1, False),
        ("8 starts, full rank from the first step on", "spherical", 8, False),
        ("random start, full rank from the first step on (as the paper starts)", "random", 1, False),
    ):
        for attribute, ranks in ranks_of_the_solver.items():
            setattr(estimator_module, attribute, ranks if climb else ())
        started = time.perf_counter()
        other = ProjectiveClustering(k, j, init=init, restarts=restarts).fit(table)
        took = time.perf_counter() - started
        print(f"| {name} | {took:.1f} s, relative error {other.inertia_ / total:.4f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--j", type=int, default=418)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (report_memory if arguments.memory else main)(arguments.folder, arguments.k, arguments.j)
