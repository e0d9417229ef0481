"""Time, memory and cost of the solver against the hardware's floor, the paper's algorithm and k-means.

    python benchmarks/bench_solver.py [MODEL_FOLDER] [--k 4] [--j 418] [--device cpu] [--parts default,memory]

Without a model's folder the table is a synthetic one, of MPNet's size unless --rows and --columns say another. Prints
the time of one step over its floor (2ndkj + 2nd^2 operations at the matrix rate measured here), the time and error of
default fits, the peak memory of a fit over the bytes of the table, read in a process that holds nothing else, a fit
with unequal ranks, what ten starts of the paper's algorithm take and reach, and the time of scikit-learn's KMeans on
the same rows as a yardstick.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bench_tables import add_size_options, read_table, synthetic_table
from machine import Machine, add_machine_options, beside_target, machine_of
from process_memory import RETURN_MEMORY, extra_memory
from torch import Tensor

from projclust.clustering.fit import ClusteringOptions, fit_clustering
from projclust.clustering.rows import Rows
from projclust.clustering.scatter import ClusterScatter, fit_subspaces
from projclust.clustering.seeding import random_partition
from projclust.clustering.subspaces import assign_rows

# The paper's: ten random starts of 15 steps each.
STARTS, STEPS = 10, 15
PARTS = ("default", "memory", "unequal", "paper", "kmeans")


def table_of(arguments: argparse.Namespace) -> Tensor:
    """The table that the command line names."""
    if arguments.folder is not None:
        return read_table(arguments.folder)
    rows, columns = (3000, 64) if arguments.quick else (30527, 768)
    return synthetic_table(arguments.rows or rows, arguments.columns or columns, device=arguments.device)


def report_memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of a fit, less what the process had before it held the table; for a process of its own."""
    k, j, device = arguments.k, arguments.j, arguments.device
    fit_clustering(torch.randn(2048, 256), ClusteringOptions(2, 4), device=device)  # the libraries' own buffers
    table = table_of(arguments)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        fit_clustering(table, ClusteringOptions(k, j), device=device)
        used, where = torch.cuda.max_memory_allocated(), "GPU memory"
    else:
        used = extra_memory(lambda: fit_clustering(table.clone(), ClusteringOptions(k, j)))
        where = "memory"
    print(f"| peak {where} of a fit, the table included | {used / 1e6:.0f} MB = {used / table.nbytes:.2f} tables |")


def paper_step(table: np.ndarray, labels: np.ndarray, k: int, j: int) -> np.ndarray:
    """One step as the authors' code takes it: an SVD of every cluster's rows, and a null space for its distances."""
    from scipy.linalg import null_space

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


def print_step(rows: Rows, labels: Tensor, k: int, j: int, machine: Machine, floor: float) -> None:
    """Print what one step takes whose parts are all made anew."""
    subspaces, _ = fit_subspaces(rows, labels, k, j)
    scatter = ClusterScatter(rows, labels, k, affine=False)
    gram, iterate, assign = (
        machine.seconds(work)
        for work in (
            lambda: ClusterScatter(rows, labels, k, affine=False),
            lambda: scatter.iterate(subspaces),
            lambda: assign_rows(rows, subspaces),
        )
    )
    whole = gram + iterate + assign
    print(
        f"| one step from nothing (scatter + bases + assignment) | {gram:.3f} + {iterate:.3f} + {assign:.3f} s, "
        f"{whole / floor:.2f} x its floor |",
        flush=True,
    )


def main(arguments: argparse.Namespace, machine: Machine, parts: list[str]) -> None:
    """Print the table of figures."""
    k, j, device = arguments.k, arguments.j, machine.device
    table = table_of(arguments)
    n, d = table.shape
    total = float(table.double().square().sum())
    rows = Rows.of(table, device=torch.device(device))
    labels = random_partition(rows, k, torch.Generator().manual_seed(0))

    print(f"{n} x {d}{'' if arguments.folder else ' (synthetic)'}, k={k}, j={j}, {machine.name}\n")
    print("| what | measured |\n| --- | --- |")
    rate = machine.matrix_rate(d)
    floor = (2 * n * d * k * j + 2 * n * d * d) / rate
    print(f"| matrix rate | {rate / 1e9:.0f} GFLOP/s |")

    print_step(rows, labels, k, j, machine, floor)

    def fit(what: str, target: float | None = None, **options: object) -> tuple[float, float]:
        started = time.perf_counter()
        own = ClusteringOptions(k, j, **options)  # type: ignore[arg-type]
        fitted = fit_clustering(table, own, device=device)
        took = time.perf_counter() - started
        error = fitted.inertia / total
        print(
            f"| {what} | {took:.2f} s = {took / floor:.1f} step floors{beside_target(took, target)}, "
            f"{len(fitted.cost_history)} steps, relative error {error:.4f} |",
            flush=True,
        )
        return took, error

    took, error = fit("default fit", arguments.target)
    if "default" in parts:
        fit("default fit, again with seed 1", arguments.target, seed=1)
        fit("one start", restarts=1)
    if "memory" in parts:
        subprocess.run([sys.executable, *sys.argv, "--memory"], check=True, env={**os.environ, **RETURN_MEMORY})
    if "unequal" in parts:
        fit("unequal ranks", ranks="adaptive")
    if "paper" in parts:
        paper_error = paper_cost(rows, k, j) / total
        started = time.perf_counter()
        paper_step(table.double().numpy(), labels.cpu().numpy(), k, j)
        step = time.perf_counter() - started
        print(
            f"| the paper's algorithm | {step:.1f} s a step, {STARTS * STEPS * step:.0f} s for {STARTS} starts of "
            f"{STEPS} steps = {STARTS * STEPS * step / took:.0f} x a default fit |"
        )
        print(f"| best of its {STARTS} starts | relative error {paper_error:.4f} (default fit: {error:.4f}) |")
    if "kmeans" in parts:
        from sklearn.cluster import KMeans

        started = time.perf_counter()
        steps = KMeans(k, n_init=1, random_state=0).fit(table.float().numpy()).n_iter_
        kmeans = time.perf_counter() - started
        print(f"| scikit-learn KMeans, k={k}, one start | {kmeans:.2f} s, {steps} steps; ours {took / kmeans:.1f} x |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="The folder of the model whose table is fitted.")
    parser.add_argument("--k", type=int, default=4, help="The number of subspaces (default: 4).")
    parser.add_argument("--j", type=int, help="The rank of the subspaces (default: 418, with --quick 24).")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"What to measure (default: {','.join(PARTS)}).")
    parser.add_argument("--target", type=float, metavar="SECONDS", help="Print beside a fit whether it took no longer.")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    add_size_options(parser)
    add_machine_options(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"there are no parts {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    arguments.j = arguments.j or (24 if arguments.quick else 418)
    machine = machine_of(arguments)
    if arguments.memory:
        report_memory(arguments)
    else:
        main(arguments, machine, arguments.parts.split(","))
