"""Names and figures as people read them, the same in Markdown, plots and on the terminal."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from projclust.glue.tasks import DEMO, TASKS
from projclust.results.rows import Row
from projclust.results.summary import AFTER, Average, Mean, Summary

DEMONSTRATION = "demonstration data, not GLUE"

_TRAINED = {
    "paper": "The model was trained on the task, its embedding was compressed (scores before), and all of it was "
    "trained further (scores after); the dense model had the same further training.",
    "pretrained": "The embedding was compressed in the model as it came, and the model was then trained on the task, "
    "like the dense one (scores after); there are scores before only if it came with a classifier for the task.",
    "as-is": "The model came compressed and was trained on the task (scores after); there are scores before only if "
    "it came with a classifier for the task.",
}
# Where no epochs were asked for after the compression.
_UNTRAINED = {
    "paper": "The model was trained on the task and its embedding was compressed; nothing was trained after that.",
    "pretrained": "The embedding was compressed in the model as it came, with its classifier; nothing was trained.",
    "as-is": "The model came compressed and was scored as it is; nothing was trained.",
}


def plain(text: str) -> str:
    """Text from a file as one line without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def heading(summary: Summary) -> str:
    """The last part of the model's Hub id or path, and the protocol."""
    name = plain(PurePath(summary.model).name or summary.model)
    return f"{name}, protocol {summary.protocol} ({_steps(summary)})"


def is_trained_further(summary: Summary) -> bool:
    """Whether anything was trained once the embedding was compressed."""
    return any(row.settings.get("epochs") != 0 for row in summary.tasks.values())


def _steps(summary: Summary) -> str:
    """What was done, in its order."""
    further = is_trained_further(summary)
    if summary.protocol == "as-is":
        return "compressed earlier, " + ("then trained" if further else "not trained")
    if summary.protocol == "pretrained":
        return "compressed, " + ("then trained" if further else "not trained")
    first = any(row.settings.get("baseline_epochs") != 0 for row in summary.tasks.values())
    return ", ".join(["trained"] * first + ["compressed"] + ["trained further"] * further)


def explanation(summary: Summary) -> str:
    """What was done, in a sentence or two."""
    return (_TRAINED if is_trained_further(summary) else _UNTRAINED)[summary.protocol]


def stage_phrase(summary: Summary, stage: str) -> str:
    """When the scores of a stage were taken."""
    if stage == AFTER:
        return "after training"
    return "before further training" if is_trained_further(summary) else "without further training"


def stage_column(summary: Summary, stage: str) -> str:
    """The name of a stage's column; where nothing was trained there is but one."""
    return stage if is_trained_further(summary) else "score"


def drop_column(summary: Summary, stage: str) -> str:
    """The name of the column of a stage's drops."""
    return f"drop {stage}" if is_trained_further(summary) else "drop"


def task_title(row: Row) -> str:
    """A task's name, marked where it is the demonstration or not all rows were used."""
    name = TASKS[row.task].title + f", {DEMONSTRATION}" * (row.task == DEMO)
    return name if row.limit is None else f"{name} (limited to {row.limit:,} rows)"


def average_title(summary: Summary, average: Average) -> str:
    """What an average is of, marked where any of its tasks is limited."""
    limited = any(summary.tasks[task].limit is not None for task in average.tasks)
    return f"average of {len(average.tasks)} tasks" + " (limited rows)" * limited


def marks(summary: Summary) -> list[str]:
    """What must be said wherever figures of all tasks are shown together."""
    limits = sorted({row.limit for row in summary.tasks.values() if row.limit is not None})
    limited = [f"limited to {' or '.join(f'{limit:,}' for limit in limits)} rows of a split"] if limits else []
    return [DEMONSTRATION] * (DEMO in summary.tasks) + limited


def points(mean: Mean | None, sign: bool = False, digits: int = 2) -> str:
    """A mean with its standard error, without the number of seeds; empty for None."""
    if mean is None:
        return ""
    error = "" if mean.standard_error is None else f" ± {mean.standard_error:.{digits}f}"
    return f"{mean.mean:{'+' if sign else ''}.{digits}f}{error}"


def columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of cells in columns two spaces apart, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
