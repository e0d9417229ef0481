"""Means, standard errors and drops against dense, from the rows of results.json."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from projclust.results.rows import DEMO, Row, merge_rows, variant_order

BEFORE, AFTER = "before", "after"
STAGES = (BEFORE, AFTER)
DENSE = "dense"


@dataclass(frozen=True)
class Mean:
    """A mean over seeds."""

    mean: float
    standard_error: float | None  # sample standard deviation over the square root of the number of seeds
    seeds: int  # how many


@dataclass(frozen=True)
class Score:
    """What one variant reached in one stage, in points."""

    score: Mean
    drop: Mean | None  # dense less this variant for each seed that both have, in the same stage; None for dense itself


@dataclass(frozen=True)
class Cell:
    """One variant on one task; where nothing was measured in a stage, "before" or "after", that is absent."""

    scores: dict[str, Score]
    metrics: dict[str, dict[str, Mean]]  # by stage and name, as fractions
    times_smaller: float  # here alone: `best` may be of another size on every task
    diverged: int  # seeds whose training diverged; nothing of theirs is in the means


@dataclass(frozen=True)
class Average:
    """The mean over tasks on each of which every variant has a score with each of the seeds."""

    tasks: list[str]
    seeds: list[int]
    scores: dict[str, dict[str, Score]]  # by label and stage


@dataclass(frozen=True)
class Variant:
    """A variant and its size; the figures are means over its rows that did not diverge."""

    label: str
    variant: str
    method: str
    affine: bool
    codes: str | None
    compression_rate: float
    bytes_stored: int
    times_smaller: float  # bytes of the dense embedding over those of this one
    bits_per_weight: float
    model_bytes_stored: int
    relative_error: float | None  # None where no row knows it


@dataclass(frozen=True)
class Summary:
    """All that was measured of one model under one protocol."""

    model: str
    model_sha256: str
    protocol: str
    rows: list[Row]  # sorted, each cell once
    tasks: dict[str, Row]  # one of its rows, for what all its rows share
    variants: list[Variant]  # dense first; the last is `best`
    cells: dict[tuple[str, str], Cell]  # by task and label
    # One for both stages where these cover the same tasks and seeds, otherwise one for each; none where the variants
    # share fewer than two tasks of GLUE.
    averages: list[Average]

    @property
    def dense(self) -> str | None:
        """The label of the dense variant, if it was measured."""
        return next((variant.label for variant in self.variants if variant.variant == DENSE), None)

    @property
    def stages(self) -> list[str]:
        """The stages in which anything was measured."""
        return [stage for stage in STAGES if any(stage in cell.scores for cell in self.cells.values())]

    def of_task(self, task: str) -> dict[str, Cell]:
        """The variants measured on a task, by label, in their order."""
        labels = [variant.label for variant in self.variants]
        return {label: self.cells[task, label] for label in labels if (task, label) in self.cells}

    @property
    def seeds(self) -> list[int]:
        """All seeds, diverged ones too."""
        return sorted({row.seed for row in self.rows})


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """One summary for each model and protocol, in that order; see `merge_rows` for rows that contradict each other."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in merge_rows(rows):
        groups.setdefault((row.model_sha256, row.protocol), []).append(row)
    return sorted(map(_summary, groups.values()), key=lambda summary: (summary.model, summary.model_sha256))


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and standard error of at least one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error, len(values))


def _summary(rows: list[Row]) -> Summary:
    cells: dict[tuple[str, str], list[Row]] = {}
    variants: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault((row.task, row.label), []).append(row)
    for row in sorted(rows, key=lambda row: (row.status != "done", variant_order(row))):
        variants.setdefault(row.label, []).append(row)
    dense = next((row.label for row in rows if row.variant == DENSE), None)
    return Summary(
        rows[0].model,
        rows[0].model_sha256,
        rows[0].protocol,
        rows,
        {row.task: row for row in rows},
        [_variant(of_label) for of_label in variants.values()],
        {(task, label): _cell(cells, task, label, dense) for task, label in cells},
        _averages(cells, dense),
    )


def _variant(rows: list[Row]) -> Variant:
    rows = _sized(rows)
    first = rows[0]
    errors = [row.relative_error for row in rows if row.relative_error is not None]
    return Variant(
        first.label,
        first.variant,
        first.method,
        bool(first.affine),
        first.codes,
        statistics.fmean(row.compression_rate for row in rows),
        round(statistics.fmean(row.bytes_stored for row in rows)),
        _times_smaller(rows),
        statistics.fmean(row.bits_per_weight for row in rows),
        round(statistics.fmean(row.model_bytes_stored for row in rows)),
        statistics.fmean(errors) if errors else None,
    )


def _sized(rows: list[Row]) -> list[Row]:
    """Rows whose sizes are measured: where already the dense model's training diverged, nothing was compressed."""
    return [row for row in rows if row.status == "done"] or rows


def _times_smaller(rows: list[Row]) -> float:
    return rows[0].bytes_dense / statistics.fmean(row.bytes_stored for row in rows)


def _cell(cells: dict[tuple[str, str], list[Row]], task: str, label: str, dense: str | None) -> Cell:
    rows = cells[task, label]
    against = cells.get((task, dense), []) if dense is not None and label != dense else []
    points = {stage: of_stage for stage in STAGES if (of_stage := _points(rows, stage))}
    scores = {stage: _score(of_stage, _points(against, stage)) for stage, of_stage in points.items()}
    metrics = {stage: _metrics(rows, stage) for stage in points}
    return Cell(scores, metrics, _times_smaller(_sized(rows)), sum(row.status == "diverged" for row in rows))


def _points(rows: list[Row], stage: str) -> dict[int, float]:
    """Score by seed."""
    scores = {row.seed: getattr(row, f"score_{stage}") for row in rows if row.status == "done"}
    return {seed: score for seed, score in scores.items() if score is not None}


def _score(points: dict[int, float], dense: dict[int, float]) -> Score:
    drops = [dense[seed] - score for seed, score in points.items() if seed in dense]
    return Score(mean_over_seeds(list(points.values())), mean_over_seeds(drops) if drops else None)


def _metrics(rows: list[Row], stage: str) -> dict[str, Mean]:
    of_rows: list[dict[str, float]] = [getattr(row, f"metrics_{stage}") or {} for row in rows if row.status == "done"]
    names = dict.fromkeys(name for metrics in of_rows for name in metrics)
    return {name: mean_over_seeds([metrics[name] for metrics in of_rows if name in metrics]) for name in names}


def _averages(cells: dict[tuple[str, str], list[Row]], dense: str | None) -> list[Average]:
    averages: dict[tuple[object, ...], Average] = {}
    for stage in STAGES:
        points = {key: _points(rows, stage) for key, rows in cells.items() if key[0] != DEMO}
        tasks, seeds = _shared(points)
        if len(tasks) < 2:
            continue
        labels = dict.fromkeys(label for _, label in points)
        means = {
            label: {seed: statistics.fmean(points[task, label][seed] for task in tasks) for seed in seeds}
            for label in labels
        }
        average = averages.setdefault((*tasks, *seeds), Average(tasks, seeds, {label: {} for label in labels}))
        for label in labels:
            against = means.get(dense, {}) if dense is not None and label != dense else {}
            average.scores[label][stage] = _score(means[label], against)
    return list(averages.values())


def _shared(points: dict[tuple[str, str], dict[int, float]]) -> tuple[list[str], list[int]]:
    """The most tasks for which some seed has a score of every variant, and all seeds that have them.

    The tasks are the same for every seed, so that the spread over seeds is not one over tasks.
    """
    labels = {label for _, label in points}
    seeds = sorted({seed for scores in points.values() for seed in scores})
    tasks = list(dict.fromkeys(task for task, _ in points))
    has = {
        seed: {task for task in tasks if all(seed in points.get((task, label), {}) for label in labels)}
        for seed in seeds
    }
    chosen = max(has.values(), key=lambda one: (len(one), sum(one <= other for other in has.values())), default=set())
    return [task for task in tasks if task in chosen], [seed for seed in seeds if chosen <= has[seed]]


def summary_json(summary: Summary) -> dict[str, Any]:
    """A summary as one JSON object, without the rows it is made of."""
    return {
        "model": summary.model,
        "model_sha256": summary.model_sha256,
        "protocol": summary.protocol,
        "seeds": summary.seeds,
        "tasks": [
            {"task": task, "demonstration": task == DEMO, "limit": row.limit, "validation_rows": row.validation_rows}
            for task, row in summary.tasks.items()
        ],
        "variants": [asdict(variant) for variant in summary.variants],
        "results": [
            {"task": task, "label": label, "diverged": cell.diverged, **_stages_json(cell.scores)}
            for (task, label), cell in summary.cells.items()
        ],
        "averages": [
            {
                "tasks": average.tasks,
                "seeds": average.seeds,
                "results": [{"label": label, **_stages_json(scores)} for label, scores in average.scores.items()],
            }
            for average in summary.averages
        ],
    }


def _stages_json(scores: dict[str, Score]) -> dict[str, Any]:
    return {stage: asdict(scores[stage]) if stage in scores else None for stage in STAGES}
