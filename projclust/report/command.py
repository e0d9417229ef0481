"""The command that measures the same again, with every setting spelled out."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from projclust.glue.settings import PER_TASK
from projclust.glue.tasks import DEMO
from projclust.options import names_of
from projclust.recipes.recipe import Recipe
from projclust.report.phrases import plain
from projclust.results.rows import BEST, Row, variant_order
from projclust.results.summary import DENSE, Summary

_HUB_DATA = ("nyu-mll/glue", "projclust")
# What a variant's size spells out, or what it says itself.
_SPELLED = ("method", "k", "j", "ratio", "bits", "size", "affine", "codes", "sensitivity")


def commands(summary: Summary) -> list[str]:
    """The command that measures a summary's rows again; one for each where they were made in several ways."""
    groups: dict[str, list[Row]] = {}
    for row in summary.rows:
        shared = {name: value for name, value in _settings(row).items() if name not in PER_TASK}
        groups.setdefault(json.dumps([row.options, shared, _data(row)], sort_keys=True), []).append(row)
    return list(map(_command, groups.values()))


def _command(rows: Sequence[Row]) -> str:
    first, tasks = rows[0], {row.task: row for row in rows}
    seeds = sorted({row.seed for row in rows})
    arguments = ["--tasks", ",".join(tasks), "--seeds", ",".join(map(str, seeds))]
    if first.protocol != "as-is":
        specs = {row.label: _spec(row) for row in sorted(rows, key=_place)}
        arguments += ["--protocol", first.protocol, "--variants", ",".join(specs.values())]
    arguments += _flags(first.options or {})
    own: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in tasks.values() for name in _settings(row)):
        values = {task: _settings(row).get(name) for task, row in tasks.items()}
        if len({json.dumps(value) for value in values.values()}) == 1:
            arguments += _flags({name: values[first.task]})
            continue
        for task, value in values.items():
            if value is not None:
                own.setdefault(task, []).append(f"{name.replace('_', '-')}={value}")
    for task, pairs in own.items():
        arguments += ["--per-task", ":".join([task, *pairs])]
    return shlex.join(["projclust", "glue-eval", plain(first.model), *arguments, *_data(row=first)])


def _settings(row: Row) -> dict[str, Any]:
    """How a row was trained, as far as its protocol asks."""
    settings = {**row.settings, "limit": row.limit}
    if row.protocol != "paper":
        settings.pop("baseline_epochs", None)
    return settings


def _flags(values: dict[str, Any]) -> list[str]:
    """Options as the command line takes them; those that are off or have no value are left out."""
    words: list[str] = []
    for name, value in values.items():
        if value is not None and value is not False:
            words += [f"--{plain(name).replace('_', '-')}", *([] if value is True else [plain(str(value))])]
    return words


def _data(row: Row) -> list[str]:
    """The folder of the rows, which results tell by its name only."""
    return [] if row.task == DEMO or row.glue in _HUB_DATA else ["--glue-dir", plain(row.glue)]


def _spec(row: Row) -> str:
    """A variant as `--variants` takes it, with its size spelled out."""
    own = [part for part in plain(row.variant).split(":")[1:] if not _is_spelled(part)]
    if row.codes == "auto":
        parts = [row.method, f"bits={row.bits}", *["metric=none"] * (row.metric == "none")]
    elif row.k is None or row.variant == BEST:
        bits = row.bits is not None and row.variant.partition(":")[0] == row.method and "=" not in row.variant
        return plain(row.variant) + f":bits={row.bits}" * bits
    else:
        codes = [] if row.codes is None else [f"codes={plain(row.codes)}"]
        subspaces = [] if row.method == "svd" else [f"k={row.k}"]
        parts = [row.method, *subspaces, f"j={row.j}", *["affine"] * bool(row.affine), *codes]
    return ":".join([*parts, *own])


def _place(row: Row) -> tuple[int, tuple[bool, int, int, str]]:
    """Sorts the values of `--variants`: `best` chooses among those before it, which have a training score."""
    group = 1 + (row.variant == BEST) if row.training_score is not None else 0 if row.method == DENSE else 3
    return group, variant_order(row)


def _is_spelled(part: str) -> bool:
    name = part.partition("=")[0].replace("-", "_")
    return names_of(Recipe).get(name, name) in _SPELLED
