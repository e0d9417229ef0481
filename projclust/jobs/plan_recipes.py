"""Ways to store a table that `projclust plan` compares: what each takes, and what it leaves of the rows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projclust.clustering import ProjectiveClustering
from projclust.coding.baseline_rounding import NO_CLIPPING, round_groups
from projclust.coding.baselines import (
    Baseline,
    baseline_bits,
    baseline_table,
    in_subspace,
    largest_count,
    stored_size,
)
from projclust.coding.fit import CodedMatrix, code_clusters, fit_coded
from projclust.coding.predict import code_rows, predict_coded
from projclust.errors import ProjclustError
from projclust.hf.config import AUTO
from projclust.modules import CodedEmbedding
from projclust.planning import rank_for_ratio, stored_bytes

# The paper's: k subspaces, 40% of the parameters off; here after a few steps from two starts.
_K, _RATIO, _STARTS, _STEPS = 5, 0.4, 2, 2
# Rows that roundings of single rows are measured on, and the part of its sub-vectors that product quantization is.
_SAMPLE_ROWS, _PQ_PART = 8192, 1 / 12

# The rows of a rebuilt table, (N, d), by their numbers.
Rebuild = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A way to store the table, and what it leaves.

    Attributes:
        name: "auto", "projective", or a baseline's.
        bytes: of everything stored.
        errors: relative squared error of the rows, plain and weighted.
        predicted: whether the errors are estimates.
        seconds: that it took to find out.
        rebuild: makes rows; None where that would take too long.
        rebuilds_at_once: whether rebuilding rows together is cheaper than in blocks.
    """

    name: str
    bytes: int
    errors: tuple[float, float]
    predicted: bool
    seconds: float
    rebuild: Rebuild | None
    rebuilds_at_once: bool = False


@dataclass(frozen=True)
class PlannedTable:
    """The table to plan for.

    Attributes:
        rows: (n, d).
        weight: (n,) float64 row weights on the CPU; None: all one.
        metric: (d, d) of auto codes; None: the identity.
        seed: of random choices.
        exact: no estimates.
    """

    rows: Tensor
    weight: Tensor | None
    metric: Tensor | None
    seed: int
    exact: bool

    def errors(self, rebuild: Rebuild, sample: Tensor | None = None) -> tuple[float, float]:
        """Relative squared error of all rows or a sample of them, plain and weighted."""
        plain, weighted = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for ids in (torch.arange(len(self.rows)) if sample is None else sample).split(4096):
            exact = self.rows[ids].double()
            lost = (rebuild(ids).to(exact) - exact).square().sum(1)
            both = torch.stack([lost, exact.square().sum(1)]).cpu()  # (2, N)
            plain += both.sum(1)
            weighted += both.sum(1) if self.weight is None else both @ self.weight[ids]
        (a, b), (c, d) = plain.tolist(), weighted.tolist()
        return a / b if b > 0 else 0.0, c / d if d > 0 else 0.0

    def sample(self) -> Tensor | None:
        """Numbers of rows to measure on; None for all."""
        if self.exact or len(self.rows) <= _SAMPLE_ROWS:
            return None
        return torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed))[:_SAMPLE_ROWS]


def recipes_for(
    plan: PlannedTable, sizes: list[int], stage: Callable[[str], None], notes: list[str]
) -> Iterator[Recipe]:
    """Our codes and the baselines of free size at every size in bytes, the others at their own.

    Args:
        stage: called with what begins.
        notes: what is left out, and why, is added to them.
    """
    stage("fitting codes" if plan.exact else "predicting codes")
    yield from _coded(plan, sizes)
    for name, make in (
        ("projective", lambda: _subspaces(plan)),
        ("int8, int4, int3, int2, nf4", lambda: _roundings(plan)),
        (Baseline.SVD_INT4.value, lambda: _decompositions(plan, sizes)),
        (Baseline.PQ.value, lambda: _product_quantizations(plan, sizes)),
    ):
        stage(f"measuring {name}")
        try:
            yield from make()
        except ProjclustError as error:  # faiss is missing, or the table too small for it
            notes.append(f"without {name}: {error}")


def _coded(plan: PlannedTable, sizes: list[int]) -> list[Recipe]:
    """Our codes at every size."""
    rows, weight = plan.rows, plan.weight
    started, recipes = time.perf_counter(), []
    if plan.exact:
        for size in sizes:
            started = time.perf_counter()
            matrix = fit_coded(rows, size, weight, plan.metric)
            rebuild = _lookup(_decoded(matrix, rows))
            took = time.perf_counter() - started
            recipes.append(Recipe(AUTO, matrix.shape.bytes, plan.errors(rebuild), False, took, rebuild))
        return recipes
    predictions = predict_coded(rows, sizes, weight, plan.metric)
    took = (time.perf_counter() - started) / max(len(sizes), 1)
    for prediction in predictions:

        def rebuild_coded(ids: Tensor, prediction: Any = prediction) -> Tensor:
            return _decoded(code_rows(prediction, rows, ids.to(rows.device), weight), rows)

        errors = prediction.relative_error, prediction.weighted_relative_error
        recipes.append(Recipe(AUTO, prediction.bytes, errors, True, took, rebuild_coded, rebuilds_at_once=True))
    return recipes


def _decoded(matrix: CodedMatrix, like: Tensor) -> Tensor:
    embedding = CodedEmbedding(matrix.shape, dtype=torch.float32, device=like.device)
    embedding.set_stored(matrix.stored)
    return embedding.dense_weight()


def _lookup(table: Tensor) -> Rebuild:
    return lambda ids: table[ids.to(table.device)]


def _subspaces(plan: PlannedTable) -> list[Recipe]:
    """The paper's recipe in the dtype of the model, and the same with int8 coefficients."""
    (n, d), dtype = plan.rows.shape, plan.rows.dtype
    started = time.perf_counter()
    rank = rank_for_ratio(_RATIO, n, d, _K)
    clustering = ProjectiveClustering(_K, rank, seed=plan.seed)
    if not plan.exact:
        clustering.restarts, clustering.max_iter = _STARTS, _STEPS
    fit = clustering.fit(plan.rows, plan.weight)
    labels, bases, coefficients = fit.labels_, fit.components_, fit.coefficients_

    def rebuild(ids: Tensor, numbers: Tensor = coefficients) -> Tensor:
        ids = ids.to(labels.device)
        rows = torch.empty(len(ids), d, device=labels.device)
        for cluster in range(_K):
            own = labels[ids] == cluster
            rows[own] = numbers[ids[own]].float() @ bases[cluster].float()
        return rows

    floats = str(dtype).removeprefix("torch.")
    took = time.perf_counter() - started
    found = [
        Recipe(
            f"projective-{floats}",
            stored_bytes(n, d, _K, rank, floats),
            plan.errors(rebuild),
            not plan.exact,
            took,
            rebuild,
        )
    ]
    started, size = time.perf_counter(), stored_bytes(n, d, _K, rank, "int8")
    if plan.exact:
        rebuilt = _lookup(_decoded(code_clusters(plan.rows, labels, bases, None, fit.ranks_, "int8"), plan.rows))
    else:
        rounded = coefficients.float().clone()
        for cluster in range(_K):
            own = labels == cluster
            steps = rounded[own].abs().amax(0).clamp(min=1e-30) / 127 if own.any() else rounded.new_ones(rank)
            rounded[own] = (rounded[own] / steps).round() * steps

        def rebuilt(ids: Tensor) -> Tensor:
            return rebuild(ids, rounded)

    took = time.perf_counter() - started
    found.append(Recipe("projective-int8", size, plan.errors(rebuilt), not plan.exact, took, rebuilt))
    return found


def _roundings(plan: PlannedTable) -> list[Recipe]:
    """Baselines that round each row by itself."""
    n, d = plan.rows.shape
    recipes = []
    for baseline in (Baseline.INT8, Baseline.INT4, Baseline.INT3, Baseline.INT2, Baseline.NF4):
        started = time.perf_counter()

        def rebuild(ids: Tensor, baseline: Baseline = baseline) -> Tensor:
            return baseline_table(baseline, plan.rows[ids.to(plan.rows.device)]).table

        sample = plan.sample()
        errors, took = plan.errors(rebuild, sample), time.perf_counter() - started
        size = round((baseline_bits(baseline, n, d) or 0) * n * d / 8)
        recipes.append(Recipe(baseline.value, size, errors, sample is not None, took, rebuild))
    return recipes


def _decompositions(plan: PlannedTable, sizes: list[int]) -> list[Recipe]:
    """`baseline_table`'s row-weighted SVD with int4 coefficients, decomposed once for all sizes."""
    rows, (n, d) = plan.rows.float(), plan.rows.shape
    weight = None if plan.weight is None else (plan.weight / plan.weight.max()).float().to(rows.device)
    started = time.perf_counter()
    ranks = sorted({rank for size in sizes if (rank := _count_for(Baseline.SVD_INT4, n, d, size))}, reverse=True)
    if not ranks:
        raise ProjclustError("the sizes are too small for it")
    basis = ProjectiveClustering(1, ranks[0], method="svd").fit(rows, weight).components_[0]
    recipes = []
    for rank in ranks:
        own = round_groups(basis[:rank], 8, NO_CLIPPING)
        rebuild = _lookup(in_subspace(rows, own, 4, weight))
        errors = plan.errors(rebuild)
        took = time.perf_counter() - started
        size = stored_size(Baseline.SVD_INT4, n, d, rank)
        recipes.append(Recipe(Baseline.SVD_INT4.value, size, errors, False, took, rebuild))
        started = time.perf_counter()
    return recipes


def _product_quantizations(plan: PlannedTable, sizes: list[int]) -> list[Recipe]:
    """Product quantization with all rows and steps, but measured on a part of its sub-vectors spread evenly."""
    n, d = plan.rows.shape
    recipes = []
    for count in sorted({count for size in sizes if (count := _count_for(Baseline.PQ, n, d, size))}, reverse=True):
        started = time.perf_counter()
        size = stored_size(Baseline.PQ, n, d, count)
        if plan.exact:
            rebuild = _lookup(baseline_table(Baseline.PQ, plan.rows, 8 * size / (n * d), plan.weight, plan.seed).table)
            errors, took = plan.errors(rebuild), time.perf_counter() - started
            recipes.append(Recipe(Baseline.PQ.value, size, errors, False, took, rebuild))
            continue
        parts = plan.rows.tensor_split(count, 1)
        chosen = [parts[int((i + 0.5) / _PQ_PART)] for i in range(int(count * _PQ_PART))] or [parts[count // 2]]
        sums = torch.zeros(2, 2, dtype=torch.float64)
        weight = torch.ones(n, dtype=torch.float64) if plan.weight is None else plan.weight
        for part in chosen:
            bits = 8 * stored_size(Baseline.PQ, n, part.shape[1], 1) / part.numel()
            rebuilt = baseline_table(Baseline.PQ, part, bits, plan.weight, plan.seed).table
            lost = (rebuilt.double() - part.double()).square().sum(1).cpu()
            both = torch.stack([lost, part.double().square().sum(1).cpu()])
            sums += torch.stack([both.sum(1), both @ weight])
        plain, weighted = (lost / max(total, 1e-300) for lost, total in sums.tolist())
        took = time.perf_counter() - started
        recipes.append(Recipe(Baseline.PQ.value, size, (plain, weighted), True, took, None))
    if not recipes:
        raise ProjclustError("the sizes are too small for it")
    return recipes


def _count_for(baseline: Baseline, n: int, d: int, size: int) -> int | None:
    """Rank or number of sub-vectors of a baseline of free size; None where there is none so small."""
    try:
        return largest_count(baseline, n, d, 8 * size / (n * d))
    except ProjclustError:
        return None
