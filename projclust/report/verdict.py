"""What a report says first: one sentence with the result, and what every variant loses on every task."""

from collections.abc import Mapping
from dataclasses import dataclass

from projclust.report.markup import escaped, table
from projclust.report.phrases import average_title, points, stage_phrase, task_title
from projclust.results.rows import Row
from projclust.results.summary import DENSE, Mean, Score, Summary, Variant

# A mean that is no more than so many standard errors away from 0 may be chance.
NOISE = 2.0
# A sentence names so many variants; of more it names the best and the worst.
_MOST_NAMED = 3


@dataclass(frozen=True)
class Overall:
    """What stands for all tasks together: their average, or the only task."""

    title: str
    scores: dict[str, Score]  # by label
    one_row: float = 0.0  # the points of one validation row, where it is one task


def overall(summary: Summary) -> Overall | None:
    """The scores of the last stage that stand for all tasks; None where the tasks share no average."""
    if not summary.stages:
        return None
    stage = summary.stages[-1]
    for average in summary.averages:
        found = {label: stages[stage] for label, stages in average.scores.items() if stage in stages}
        if found:
            return Overall(f"the {average_title(summary, average)}", found)
    if len(summary.tasks) > 1:
        return None
    ((task, row),) = summary.tasks.items()
    cells = summary.of_task(task).items()
    scores = {label: cell.scores[stage] for label, cell in cells if stage in cell.scores}
    return Overall(escaped(task_title(row)), scores, _one_row(row))


def _one_row(row: Row) -> float:
    return 100 / max(row.validation_rows, 1)


def is_noise(drop: Mean, one_row: float = 0.0) -> bool:
    """Whether a difference in points may be chance; of one seed that is not known, and it may.

    `one_row` are the points of one validation row: seeds that happen to agree do not make less than that sure.
    """
    if drop.standard_error is None:
        return True
    return abs(drop.mean) <= max(NOISE * drop.standard_error, one_row + 1e-9)


def verdict(summary: Summary) -> str:
    """The result in one sentence of Markdown: which variant loses how much on average, and whether that is noise."""
    found = overall(summary)
    if not summary.stages:
        return "Nothing is known: every training diverged."
    if found is None:
        return (
            "There is no average to tell the result by, for the variants share no two tasks of GLUE; the table below "
            "has it task by task."
        )
    where = f"{stage_phrase(summary, summary.stages[-1])}, on {found.title}"
    where = where[0].upper() + where[1:]
    dense = found.scores.get(summary.dense or "")
    variants = [variant for variant in summary.variants if variant.variant != DENSE and variant.label in found.scores]
    if dense is None or not variants:
        shown = [f"{_named(variant)} has {points(score.score)} points" for variant, score in _scored(summary, found)]
        missing = "the dense model was not measured" if dense is None else "no variant was measured"
        return f"{where}: {'; '.join(shown)}; {missing}, so what the compression costs is not known."
    drops = {variant: drop for variant, score in _scored(summary, found) if (drop := score.drop) is not None}
    if not drops:
        return f"{where}: no variant shares a seed with the dense model, so what the compression costs is not known."
    clauses = [f"{_named(variant)} {_change(drop, found.one_row)}" for variant, drop in _chosen(drops).items()]
    if len(drops) > len(clauses):
        clauses.append(f"the other {len(drops) - len(clauses)} lie between")
    against = f"against the dense model's {dense.score.mean:.2f} points"
    if all(drop.standard_error is None for drop in drops.values()):
        noise = "there is one seed, so all of it may be chance"
    else:
        noise = f"noise is up to {NOISE:g} standard errors over the seeds" + ", or one row" * (found.one_row > 0)
    return f"{where}, {against}: {'; '.join(clauses)} ({noise})."


def _scored(summary: Summary, found: Overall) -> list[tuple[Variant, Score]]:
    return [(variant, found.scores[variant.label]) for variant in summary.variants if variant.label in found.scores]


def _named(variant: Variant) -> str:
    smaller = "" if variant.variant == DENSE else f" (embedding {variant.times_smaller:.3g} times smaller)"
    return f"**{escaped(variant.label)}**{smaller}"


def _chosen(drops: Mapping[Variant, Mean]) -> dict[Variant, Mean]:
    """All of a few; of many the one that loses least, and the one that loses most."""
    if len(drops) <= _MOST_NAMED:
        return dict(drops)
    ranked = sorted(drops, key=lambda variant: drops[variant].mean)
    return {variant: drops[variant] for variant in (ranked[0], ranked[-1])}


def _change(drop: Mean, one_row: float) -> str:
    amount, error = points(Mean(abs(drop.mean), None, drop.seeds)), drop.standard_error
    word = "differs by" if float(amount) == 0 else "loses" if drop.mean > 0 else "gains"
    if error is None:
        return f"{word} {amount} points"
    return (
        f"{word} {amount} ± {error:.2f} points, {'within the noise' if is_noise(drop, one_row) else 'more than noise'}"
    )


def matrix(summary: Summary) -> list[str]:
    """A table of tasks by variants, and what its figures are, as Markdown."""
    stages = summary.stages
    if not stages:
        return []
    labels = [variant.label for variant in summary.variants]
    stage = stages[-1]
    lines = [
        [
            escaped(task_title(row)),
            *(_cell(summary, label, row, stage) for label in labels),
        ]
        for row in summary.tasks.values()
    ]
    found = overall(summary)
    if found is not None and len(summary.tasks) > 1:
        lines.append(
            [found.title.removeprefix("the "), *(_figure(summary, label, found.scores.get(label)) for label in labels)]
        )
    note = f"Points {stage_phrase(summary, stage)}"
    if summary.dense is not None and len(labels) > 1:
        note += "; of the variants what they lose (+) or gain (-) against dense"
    if len(summary.seeds) > 1:
        note += ", ± its standard error; bold where that is more than noise"
    return [table(["task", *map(escaped, labels)], lines), f"{note}."]


def _cell(summary: Summary, label: str, row: Row, stage: str) -> str:
    cell = summary.cells.get((row.task, label))
    if cell is None:
        return ""
    figure = _figure(summary, label, cell.scores.get(stage), _one_row(row))
    return " ".join(part for part in (figure, f"({cell.diverged} diverged)" * bool(cell.diverged)) if part)


def _figure(summary: Summary, label: str, score: Score | None, one_row: float = 0.0) -> str:
    if score is None:
        return ""
    if summary.dense in (None, label):
        return points(score.score)
    if score.drop is None:
        return ""
    shown = points(score.drop, sign=True)
    return shown if is_noise(score.drop, one_row) else f"**{shown}**"
