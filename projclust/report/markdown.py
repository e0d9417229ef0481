"""report.md: every figure of results.json that a reader needs, with what it was measured on."""

import json
from collections.abc import Iterable, Sequence

from projclust.report.command import commands
from projclust.report.figures import plot_with_figures
from projclust.report.markup import escaped, table
from projclust.report.phrases import (
    DEMONSTRATION,
    average_title,
    drop_column,
    explanation,
    heading,
    is_trained_further,
    points,
    stage_column,
    stage_phrase,
    task_title,
)
from projclust.report.verdict import matrix, verdict
from projclust.results.rows import BEST, DEMO, Row
from projclust.results.summary import STAGES, Mean, Score, Summary


def markdown_report(summaries: Sequence[Summary], plots: Iterable[str]) -> str:
    """The report as GitHub-flavoured Markdown, with the plots that lie beside it; the data can add no markup."""
    title = heading(summaries[0]) if len(summaries) == 1 else f"{len(summaries)} models and protocols"
    only_demo = all(set(summary.tasks) == {DEMO} for summary in summaries)
    parts = [f"# What compressing the embedding costs: {escaped(title)}{f', on {DEMONSTRATION}' * only_demo}"]
    if len(summaries) == 1:
        parts += [verdict(summaries[0]), *matrix(summaries[0])]
    else:
        parts.append("\n".join(f"- {escaped(heading(summary))}. {verdict(summary)}" for summary in summaries))
        for summary in summaries:
            parts += [f"**{escaped(heading(summary))}**", *matrix(summary)]
    for name in plots:
        parts += plot_with_figures(name, summaries)
    for summary in summaries:
        parts += _section(summary)
    return "\n\n".join(parts) + "\n"


def _section(summary: Summary) -> list[str]:
    return [
        f"## {escaped(heading(summary))}",
        *_notes(summary),
        "### Sizes",
        _sizes(summary),
        "### Scores",
        *_scores(summary),
        *_diverged(summary),
        *_choices(summary),
        "### All metrics",
        *_metrics(summary),
        "### How it was measured",
        *_conditions(summary),
    ]


def _notes(summary: Summary) -> list[str]:
    notes = [explanation(summary)]
    if DEMO in summary.tasks:
        notes.append(f"The task `demo` is {DEMONSTRATION}: its scores say nothing about GLUE.")
    if any(row.limit is not None for row in summary.tasks.values()):
        notes.append("Not all rows were used: tasks marked as limited cannot be compared with published figures.")
    if summary.dense is None:
        notes.append("The dense model was not measured, so no drops are shown.")
    if len(summary.seeds) == 1:
        notes.append("There is one seed, so there is no standard error: differences may be chance.")
    return notes


def _sizes(summary: Summary) -> str:
    lines = [
        [
            escaped(variant.label),
            f"{100 * variant.compression_rate:.1f}%",
            f"{variant.bytes_stored / 1e6:,.2f}",
            f"{variant.times_smaller:.2f}",
            f"{variant.bits_per_weight:.2f}",
            f"{variant.model_bytes_stored / 1e6:,.2f}",
            "unknown" if variant.relative_error is None else f"{variant.relative_error:.4f}",
        ]
        for variant in summary.variants
    ]
    names = ("variant", "parameters removed", "embedding MB", "times smaller", "bits per weight", "all weights MB")
    return table((*names, "relative error (mean)"), lines)


def _scores(summary: Summary) -> list[str]:
    stages, dense = summary.stages, summary.dense is not None
    names = ["task", "variant"]
    for stage in stages:
        names += [stage_column(summary, stage), *[drop_column(summary, stage)] * dense]
    lines = [
        [
            _task_with_rows(row),
            escaped(label) + f" ({cell.diverged} diverged)" * bool(cell.diverged),
            *_score_cells(cell.scores, stages, dense),
        ]
        for task, row in summary.tasks.items()
        for label, cell in summary.of_task(task).items()
    ]
    lines += [
        [average_title(summary, average), escaped(label), *_score_cells(scores, stages, dense)]
        for average in summary.averages
        for label, scores in average.scores.items()
    ]
    legend = (
        "Points (100 times the mean of a task's metrics) on the validation rows: mean ± standard error of the mean "
        "(number of seeds), without the error where there is one seed."
    )
    if dense:
        legend += " A drop is dense less variant for each seed that both have, so positive means worse than dense."
    return [table(names, lines), legend, *_coverage(summary)]


def _score_cells(scores: dict[str, Score], stages: list[str], dense: bool) -> list[str]:
    cells = []
    for score in map(scores.get, stages):
        cells.append(_seeds(score.score if score else None))
        cells += [_seeds(score.drop if score else None, sign=True)] * dense
    return cells


def _seeds(mean: Mean | None, sign: bool = False, digits: int = 2) -> str:
    return "" if mean is None else f"{points(mean, sign, digits)} ({mean.seeds})"


def _coverage(summary: Summary) -> list[str]:
    """What the averages cover."""
    sentences = []
    for average in summary.averages:
        tasks = ", ".join(task_title(summary.tasks[task]) for task in average.tasks)
        every = "all nine tasks of GLUE" if len(average.tasks) == 9 else f"{len(average.tasks)} of GLUE's nine tasks"
        seeds = f"{'seed' if len(average.seeds) == 1 else 'seeds'} {', '.join(map(str, average.seeds))}"
        measured = list(next(iter(average.scores.values())))
        stages = " and ".join(measured) if is_trained_further(summary) else stage_phrase(summary, measured[0])
        sentences.append(f"The average {stages} is over {every} ({tasks}) and {seeds}: every variant has all of these.")
    if not sentences and len(summary.tasks) > 1:
        sentences.append("No average is shown: the variants do not share scores on two tasks of GLUE for any seed.")
    return sentences


def _diverged(summary: Summary) -> list[str]:
    lines = [
        [
            escaped(task_title(row)),
            escaped(row.label),
            str(row.seed),
            "" if row.score_before is None else f"{row.score_before:.2f}",
            escaped(row.reason or "unknown"),
        ]
        for row in summary.rows
        if row.status == "diverged"
    ]
    note = "Training failed here; these cells are in no mean and no plot."
    return ["### Diverged", note, table(("task", "variant", "seed", "before", "reason"), lines)] if lines else []


def _choices(summary: Summary) -> list[str]:
    lines = [
        [escaped(task_title(row)), str(row.seed), escaped(row.chosen or "unknown")]
        for row in summary.rows
        if row.variant == BEST
    ]
    note = "`best` takes the variant with the highest score on the training rows; validation rows play no part in it."
    return ["### What `best` chose", note, table(("task", "seed", "chosen"), lines)] if lines else []


def _metrics(summary: Summary) -> list[str]:
    parts = ["Fractions of 1: mean ± standard error (number of seeds)."]
    for task, row in summary.tasks.items():
        cells = summary.of_task(task)
        columns = [
            (stage, name)
            for stage in STAGES
            for name in dict.fromkeys(name for cell in cells.values() for name in cell.metrics.get(stage, {}))
        ]
        lines = [
            [escaped(label), *(_seeds(cell.metrics.get(stage, {}).get(name), digits=4) for stage, name in columns)]
            for label, cell in cells.items()
        ]
        trained = is_trained_further(summary)
        names = [escaped(name) + f" {stage}" * trained for stage, name in columns]
        parts += [f"#### {_task_with_rows(row)}", table(("variant", *names), lines)]
    return parts


def _conditions(summary: Summary) -> list[str]:
    tasks = summary.tasks
    data = [
        [escaped(task_title(row)), escaped(row.glue), f"{row.training_rows:,}", f"{row.validation_rows:,}"]
        for row in tasks.values()
    ]
    names = dict.fromkeys(name for row in tasks.values() for name in row.settings)
    settings = [[escaped(name), _setting(list(tasks.values()), name)] for name in names]
    stages = dict.fromkeys(name for row in summary.rows for name in row.seconds)
    seconds = [
        [escaped(task_title(row)), *(f"{_seconds(summary.rows, task, name):,.1f}" for name in stages)]
        for task, row in tasks.items()
    ]
    versions = {f"{name} {version}" for row in summary.rows for name, version in row.versions.items()}
    devices = {f"{row.device} (processes: {row.processes})" for row in summary.rows}
    return [
        table(("task", "data from", "training rows", "validation rows"), data),
        table(("setting", "value"), settings),
        "Seconds by stage, over all variants and seeds; `baseline` is shared by the variants and counted once a seed.",
        table(("task", *map(escaped, stages)), seconds),
        f"Model: {escaped(summary.model)}, SHA-256 {escaped(summary.model_sha256)}.",
        f"Device: {escaped(', '.join(sorted(devices)))}. Versions: {escaped(', '.join(sorted(versions)))}.",
        "To make it again"
        + " (other options: `projclust_options.yaml` where it was measured)" * (summary.rows[0].options is None)
        + ":",
        "```console\n" + "\n".join(commands(summary)) + "\n```",
    ]


def _setting(rows: list[Row], name: str) -> str:
    """One value where all tasks agree, otherwise the value of each."""
    values = {row.task: json.dumps(row.settings.get(name)) for row in rows}
    if len(set(values.values())) == 1:
        return escaped(values[rows[0].task])
    return escaped(", ".join(f"{task}: {value}" for task, value in values.items()))


def _seconds(rows: list[Row], task: str, name: str) -> float:
    of_task = [row for row in rows if row.task == task]
    if name != "baseline":
        return sum(row.seconds.get(name, 0.0) for row in of_task)
    seeds = dict.fromkeys(row.seed for row in of_task)
    return sum(max(row.seconds.get(name, 0.0) for row in of_task if row.seed == seed) for seed in seeds)


def _task_with_rows(row: Row) -> str:
    return f"{escaped(task_title(row))}, {row.validation_rows:,} validation rows"
