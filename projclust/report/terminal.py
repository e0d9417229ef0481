"""A summary as plain text for the terminal."""

from collections.abc import Sequence

from projclust.glue.tasks import TASKS
from projclust.report.phrases import columns, drop_column, heading, marks, plain, points, stage_phrase
from projclust.results.summary import Score, Summary


def summary_table(summary: Summary) -> str:
    """Variants by tasks in the last stage measured, and what they lost in each stage on average or on the only task."""
    stages, dense = summary.stages, summary.dense is not None
    names = ["variant", "smaller", *(TASKS[task].title for task in summary.tasks)]
    names += ["average"] * bool(summary.averages) + [drop_column(summary, stage) for stage in stages if dense]
    lines = [names]
    for variant in summary.variants:
        cells = [summary.cells.get((task, variant.label)) for task in summary.tasks]
        averages = [average.scores.get(variant.label, {}) for average in summary.averages]
        overall: dict[str, Score] = {stage: score for scores in averages for stage, score in scores.items()}
        line = [plain(variant.label), f"{variant.times_smaller:.2f}x"]
        line += [_score(cell.scores if cell else {}, stages, summary) for cell in cells]
        if summary.averages:
            line.append(_score(overall, stages, summary))
        elif len(cells) == 1 and cells[0] is not None:
            overall = cells[0].scores
        drops = {stage: score.drop for stage, score in overall.items()}
        line += [points(drops.get(stage), sign=True) or "-" for stage in stages if dense]
        lines.append(line)
    return "\n".join([heading(summary), "; ".join(_notes(summary)), *columns(lines)])


def _notes(summary: Summary) -> list[str]:
    stages, diverged = summary.stages, sum(cell.diverged for cell in summary.cells.values())
    notes = [f"points {stage_phrase(summary, stages[-1])}"] if stages else []
    if len(summary.seeds) == 1:
        notes.append("one seed, no standard errors")
    else:
        notes.append(f"mean of {len(summary.seeds)} seeds, (n) where of fewer, ± standard error")
    notes += [f"average of {len(average.tasks)} tasks" for average in summary.averages[-1:]]
    notes += [f"{diverged} diverged"] * bool(diverged) + marks(summary)
    rows = ", ".join(f"{TASKS[task].title} {row.validation_rows:,}" for task, row in summary.tasks.items())
    notes.append(f"validation rows: {rows}")
    return notes if summary.dense is not None else [*notes, "dense was not measured: no drops"]


def _score(scores: dict[str, Score], stages: Sequence[str], summary: Summary) -> str:
    score = scores.get(stages[-1]) if stages else None
    if score is None:
        return "-"
    mean, fewer = score.score, score.score.seeds < len(summary.seeds)
    return f"{mean.mean:.2f}" + f" ({mean.seeds})" * fewer
