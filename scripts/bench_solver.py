"""Time, memory and cost of the solver on a real table, against the hardware's floor, the paper's algorithm and k-means.

    python scripts/bench_solver.py MODEL_FOLDER [--k 4] [--j 418] [--device cpu]

Prints one step's time over its floor (2ndkj + 2nd^2 operations at the matrix rate measured here), the time and error of
default fits, what ten starts of the paper's algorithm take and reach, scikit-learn's KMeans on the same rows as a
yardstick, and the peak memory of a fit over the table's bytes, read in a process that holds nothing else.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from process_memory import RETURN_MEMORY, extra_memory
from safetensors import safe_open
from scipy.linalg import null_space
from sklearn.cluster import KMeans
from torch import Tensor

from projclust import ProjectiveClustering
from projclust.clustering.moments import Moments, fit_subspaces
from projclust.clustering.rows import Rows
from projclust.clustering.seeding import random_partition
from projclust.clustering.subspaces import assign_rows

# The paper's: ten random starts of 15 steps each.
STARTS, STEPS = 10, 15


def read_table(folder: Path) -> Tensor:
    """The word embedding of a BERT-like checkpoint."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith("word_embeddings.weight"))  # noqa: SIM118
        table: Tensor = file.get_tensor(name)
    return table


def seconds(work: Callable[[], object], repeats: int = 3, device: str = "cpu") -> float:
    """The median time of `work`, after one run that is not counted."""

    def finished() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    times = []
    for _ in range(repeats):
        finished()
        started = time.perf_counter()
        work()
        finished()
        times.append(time.perf_counter() - started)
    return sorted(times)[repeats // 2]


def matrix_rate(d: int, device: str = "cpu") -> float:
    """Measured float32 operations a second of a product of the solver's shape."""
    left, right = torch.randn(4096, d, device=device), torch.randn(d, 4 * d, device=device)
    return 2 * left.numel() * right.shape[1] / seconds(lambda: left @ right, repeats=9, device=device)


def report_memory(folder: Path, k: int, j: int, device: str) -> None:
    """In a process of its own: peak memory during a fit, less what the process had before it held the table."""
    warm_up = torch.randn(2048, 256)
    ProjectiveClustering(2, 4, device=device).fit(warm_up)  # the libraries' own buffers
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        table = read_table(folder)
        ProjectiveClustering(k, j, device=device).fit(table)
        used = torch.cuda.max_memory_allocated()
        print(
            f"| peak GPU memory of a fit, the table included | {used / 1e6:.0f} MB = {used / table.nbytes:.2f} tables |"
        )
        return
    table = read_table(folder)
    used = extra_memory(lambda: ProjectiveClustering(k, j).fit(table.clone()))
    print(f"| peak memory of a fit, the table included | {used / 1e6:.0f} MB = {used / table.nbytes:.2f} tables |")


def paper_step(table: np.ndarray, labels: np.ndarray, k: int, j: int) -> np.ndarray:
    """One step as the authors' code takes it: an SVD of every cluster's rows, and a null space for its distances."""
    distances = np.empty((len(table), k))
    for cluster in range(k):
        directions = np.linalg.svd(table[labels == cluster], full_matrices=False)[2]
        distances[:, cluster] = np.square(table @ null_space(directions[:j])).sum(1)
    return distances.argmin(1)


def paper_cost(rows: Rows, k: int, j: int) -> float:
    """The lowest cost of the paper's ten starts, by exact steps that are faster than the paper's."""
    costs = []
    for start in range(STARTS):
        labels = random_partition(rows, k, torch.Generator().manual_seed(start))
        for _ in range(STEPS):
            look = assign_rows(rows, fit_subspaces(rows, labels, k, j)[0])
            labels = look.labels
        costs.append(rows.weighted_sum(look.distances))
    return min(costs)


def main(folder: Path, k: int, j: int, device: str) -> None:
    """Print the table of figures."""
    table = read_table(folder)
    n, d = table.shape
    total = float(table.double().square().sum())
    rows = Rows.of(table, device=torch.device(device))
    labels = random_partition(rows, k, torch.Generator().manual_seed(0))
    subspaces, _ = fit_subspaces(rows, labels, k, j)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"

    print(f"{n} x {d}, k={k}, j={j}, {name}, torch {torch.__version__}\n")
    print("| what | measured |\n| --- | --- |")
    rate = matrix_rate(d, device)
    floor = (2 * n * d * k * j + 2 * n * d * d) / rate
    print(f"| matrix rate | {rate / 1e9:.0f} GFLOP/s |")

    moments = Moments(rows, labels, k, affine=False)
    gram, improve, assign = (
        seconds(work, device=device)
        for work in (
            lambda: Moments(rows, labels, k, affine=False),
            lambda: moments.improve(subspaces),
            lambda: assign_rows(rows, subspaces),
        )
    )
    whole = gram + improve + assign
    print(
        f"| one step from nothing (moments + bases + assignment) | {gram:.3f} + {improve:.3f} + {assign:.3f} s, "
        f"{whole / floor:.2f} x its floor |"
    )

    def fit(what: str, **options: object) -> tuple[float, float]:
        started = time.perf_counter()
        fitted = ProjectiveClustering(k, j, device=device, **options).fit(table)  # type: ignore[arg-type]
        took = time.perf_counter() - started
        error = fitted.inertia_ / total
        print(
            f"| {what} | {took:.2f} s = {took / floor:.1f} step floors, {fitted.n_iter_} steps, "
            f"relative error {error:.4f} |",
            flush=True,
        )
        return took, error

    took, error = fit("default fit")
    fit("default fit, again with seed 1", seed=1)
    fit("one start", restarts=1)
    fit("unequal ranks", ranks="adaptive")
    subprocess.run(
        [sys.executable, __file__, str(folder), "--k", str(k), "--j", str(j), "--device", device, "--memory"],
        check=True,
        env={**os.environ, **RETURN_MEMORY},
    )

    paper_error = paper_cost(rows, k, j) / total
    started = time.perf_counter()
    paper_step(table.double().numpy(), labels.cpu().numpy(), k, j)
    step = time.perf_counter() - started
    print(
        f"| the paper's algorithm | {step:.1f} s a step, {STARTS * STEPS * step:.0f} s for {STARTS} starts of {STEPS} "
        f"steps = {STARTS * STEPS * step / took:.0f} x a default fit |"
    )
    print(f"| best of its {STARTS} starts | relative error {paper_error:.4f} (default fit: {error:.4f}) |")
    started = time.perf_counter()
    steps = KMeans(k, n_init=1, random_state=0).fit(table.float().numpy()).n_iter_
    kmeans = time.perf_counter() - started
    print(f"| scikit-learn KMeans, k={k}, one start | {kmeans:.2f} s, {steps} steps; ours {took / kmeans:.1f} x |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--j", type=int, default=418)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (report_memory if arguments.memory else main)(arguments.folder, arguments.k, arguments.j, arguments.device)
