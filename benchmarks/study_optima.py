"""What lowers the final cost of a fit, and what does not: ways to start and to go on, on a real table.

    python benchmarks/study_optima.py MODEL_FOLDER --k 5 --j 216 [--seeds 3]

Prints for each way the relative error (mean and lowest of the seeds) and the time over that of a default fit in the
same run. The product keeps what pays in error for its time; the others are written out here, to be measured again.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_tables import read_table
from sklearn.cluster import KMeans
from torch import Tensor

import projclust.clustering.seeding as seeding_module
import projclust.clustering.solver as solver_module
from projclust import ProjectiveClustering
from projclust.clustering.inputs import ClusteringOptions
from projclust.clustering.reassignment import Leverage
from projclust.clustering.rows import Rows
from projclust.clustering.scatter import ClusterScatter, fit_subspaces
from projclust.clustering.seeding import initial_labels, successive_halving
from projclust.clustering.solver import OnStep, Solution, alternate, fit_equal_ranks
from projclust.clustering.subspaces import Subspaces, assign_rows
from projclust.options import Init

RANKS = [1, 4, 16]
TOL, MAX_ITER = 1e-3, 100
SILENT: OnStep = lambda step, cost: None  # noqa: E731


def generator(seed: int) -> torch.Generator:
    """The source of a run's random numbers."""
    return torch.Generator().manual_seed(seed)


def from_labels(rows: Rows, labels: Tensor, k: int, j: int) -> tuple[Tensor, float]:
    """Labels and cost of the alternation at full rank that starts at `labels`."""
    subspaces, _ = fit_subspaces(rows, labels, k, j)
    scatter = ClusterScatter(rows, labels, k, affine=False)
    halves = torch.rand(len(rows), generator=generator(0)) < 0.5
    alternate(scatter, subspaces, halves, MAX_ITER, TOL)
    nearest = assign_rows(rows, fit_subspaces(rows, scatter.labels, k, j)[0])
    return nearest.labels, rows.weighted_sum(nearest.distances)


def from_bases(rows: Rows, bases: Tensor, j: int, seed: int) -> Solution:
    """A solution that rank continuation leads to from low-rank bases."""
    options = ClusteringOptions(rank=j, max_iter=MAX_ITER, tol=TOL)
    return fit_equal_ranks(rows, bases, options, generator(seed), SILENT)[1]


def default(rows: Rows, k: int, j: int, seed: int, **options: object) -> float:
    """Cost of the product's fit."""
    fitted = ProjectiveClustering(k, j, seed=seed, **options).fit(rows.table)  # type: ignore[arg-type]
    return fitted.inertia_


def no_continuation(rows: Rows, k: int, j: int, seed: int) -> float:
    """k-means labels, then full rank at once, as the paper does from a random partition."""
    (labels,) = initial_labels(Init.SPHERICAL, rows, k, 1, [generator(seed)])
    return from_labels(rows, labels, k, j)[1]


def random_no_continuation(rows: Rows, k: int, j: int, seed: int) -> float:
    """The paper's start: a random partition, at full rank at once."""
    (labels,) = initial_labels(Init.RANDOM, rows, k, 1, [generator(seed)])
    return from_labels(rows, labels, k, j)[1]


def by_distance(rows: Rows, k: int, j: int, seed: int) -> float:
    """Rows move to the nearest subspace (Lloyd's step), whatever the subspaces would make of it (Hartigan's)."""
    kept = ClusterScatter.leverage
    ClusterScatter.leverage = lambda self, energies: Leverage(energies.new_zeros(k), None)  # type: ignore[method-assign]
    try:
        return default(rows, k, j, seed)
    finally:
        ClusterScatter.leverage = kept  # type: ignore[method-assign]


def short_continuation(rows: Rows, k: int, j: int, seed: int) -> float:
    """One step at every rank on the way up instead of two and up to four."""
    kept, solver_module._CONTINUATION_STEPS = solver_module._CONTINUATION_STEPS, (1, 1)
    try:
        return default(rows, k, j, seed)
    finally:
        solver_module._CONTINUATION_STEPS = kept


def whole_sample(rows: Rows, k: int, j: int, seed: int) -> float:
    """Starts tried on all rows instead of a sample."""
    kept, seeding_module._SAMPLE_ROWS = seeding_module._SAMPLE_ROWS, len(rows)
    try:
        return default(rows, k, j, seed)
    finally:
        seeding_module._SAMPLE_ROWS = kept


def split_and_merge(rows: Rows, k: int, j: int, seed: int, tries: int = 3) -> float:
    """After a default fit: merge the two clusters that lose least by it, split the costliest, keep what is better."""
    fitted = ProjectiveClustering(k, j, seed=seed).fit(rows.table)
    labels, cost = fitted.labels_, fitted.inertia_
    for attempt in range(tries):
        scatter = ClusterScatter(rows, labels, k, affine=False)
        assert scatter.grams is not None
        tails = torch.linalg.eigvalsh(scatter.grams)[:, :-j].sum(1)
        loss = {
            (a, b): float(torch.linalg.eigvalsh(scatter.grams[a] + scatter.grams[b])[:-j].sum() - tails[a] - tails[b])
            for a in range(k)
            for b in range(a)
        }
        ranked = sorted(loss, key=lambda pair: loss[pair])
        a, b = ranked[min(attempt, len(ranked) - 1)]
        worst = max((c for c in range(k) if c not in (a, b)), key=lambda c: float(tails[c]))
        trial = torch.where(labels == a, b, labels)
        members = (labels == worst).nonzero().squeeze(1)
        part = Rows.of(rows.table[members])
        halves = initial_labels(Init.SPHERICAL, part, 2, 1, [generator(seed + attempt)])
        bases, _ = successive_halving(part, halves, 2, RANKS, [generator(seed)])
        trial[members] = torch.where(assign_rows(part, Subspaces.of(bases)).labels == 0, worst, a)
        trial, found = from_labels(rows, trial, k, j)
        if found < cost:
            labels, cost = trial, found
    return cost


def co_association(rows: Rows, k: int, j: int, seed: int) -> float:
    """Labels of sixteen cheap runs, k-means on which of them agree, and rank continuation from there."""
    drawn = generator(seed)
    starts = initial_labels(Init.SPHERICAL, rows, k, 1, [drawn] * 16)
    runs = [successive_halving(rows, start.unsqueeze(0), k, RANKS, [drawn])[0] for start in starts]
    votes = [torch.nn.functional.one_hot(assign_rows(rows, Subspaces.of(run)).labels, k) for run in runs]
    consensus = KMeans(k, n_init=4, random_state=seed).fit_predict(torch.cat(votes, 1).float().numpy())
    labels = torch.from_numpy(consensus).long().unsqueeze(0)
    bases, _ = successive_halving(rows, labels, k, RANKS, [drawn])
    return from_bases(rows, bases, j, seed).cost


def coreset(rows: Rows, k: int, j: int, seed: int) -> float:
    """A fit to a quarter of the rows, drawn by their share of the cost and weighted to match, then one to all."""
    drawn = generator(seed)
    labels = initial_labels(Init.SPHERICAL, rows, k, 1, [drawn])
    bases, _ = successive_halving(rows, labels, k, RANKS, [drawn])
    nearest = assign_rows(rows, Subspaces.of(bases))
    sizes = torch.bincount(nearest.labels, minlength=k)[nearest.labels]
    sensitivity = nearest.distances / nearest.distances.sum() + 1 / (k * sizes)
    chance = sensitivity / sensitivity.sum()
    chosen = torch.multinomial(chance, len(rows) // 4, generator=drawn)
    small = Rows.of(rows.table[chosen], 1 / chance[chosen])
    start = from_bases(small, bases, j, seed).subspaces
    return from_labels(rows, assign_rows(rows, start).labels, k, j)[1]


WAYS: dict[str, Callable[[Rows, int, int, int], float]] = {
    "default: 16 starts on a sample, the best continues": default,
    "one start": lambda *where: default(*where, restarts=1),
    "64 starts": lambda *where: default(*where, restarts=64),
    "starts tried on all rows": whole_sample,
    "residual seeding": lambda *where: default(*where, init="residual"),
    "random partition": lambda *where: default(*where, init="random"),
    "rows move to the nearest subspace": by_distance,
    "one step at every rank on the way up": short_continuation,
    "no rank continuation: k-means, then full rank": no_continuation,
    "no rank continuation: random partition (the paper's start)": random_no_continuation,
    "default, then split and merge": split_and_merge,
    "co-association of 16 cheap runs": co_association,
    "coreset of a quarter of the rows, then all": coreset,
    "unequal ranks, as many parameters": lambda *where: default(*where, ranks="adaptive"),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder of the model whose table is fitted.")
    parser.add_argument("--k", type=int, required=True, help="The number of subspaces.")
    parser.add_argument("--j", type=int, required=True, help="The rank of the subspaces.")
    parser.add_argument("--seeds", type=int, default=3, help="How many seeds to try.")
    arguments = parser.parse_args()
    rows = Rows.of(read_table(arguments.folder))
    total = rows.weighted_sum(rows.norms)
    print(f"{len(rows)} x {rows.dim}, k={arguments.k}, j={arguments.j}, {arguments.seeds} seeds\n")
    print("| way | error, mean | lowest | time |\n| --- | ---: | ---: | ---: |")
    reference = 0.0
    for name, way in WAYS.items():
        started = time.perf_counter()
        errors = [way(rows, arguments.k, arguments.j, seed) / total for seed in range(arguments.seeds)]
        took = time.perf_counter() - started
        reference = reference or took
        print(f"| {name} | {statistics.mean(errors):.5f} | {min(errors):.5f} | {took / reference:.2f} |", flush=True)
