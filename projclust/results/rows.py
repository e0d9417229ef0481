"""results.json: rows of measurements, read and checked, merged and written. docs/results.md describes the fields."""

import json
import math
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from projclust.errors import ProjclustError
from projclust.glue.tasks import DEMO as DEMO
from projclust.glue.tasks import TASKS
from projclust.recipes.recipe import METHODS as RECIPE_METHODS
from projclust.results.files import replace_file

RESULTS_FILE = "results.json"
SCHEMA_VERSION = 1

METHODS = ("dense", *RECIPE_METHODS, "compressed")
PROTOCOLS = ("paper", "pretrained", "as-is")
BEST = "best"
METRICS = {"matthews_correlation", "accuracy", "f1", "pearson", "spearmanr", "accuracy_matched", "accuracy_mismatched"}

_CHOICES = {"task": tuple(TASKS), "method": METHODS, "protocol": PROTOCOLS, "status": ("done", "diverged")}
_SIZES = ("params_dense", "params_stored", "bytes_dense", "bytes_stored", "model_bytes_dense", "model_bytes_stored")
_COUNTS = ("seed", "training_rows", "validation_rows")
# Rows of one task can only be compared when these, and the settings, are the same.
_CONDITIONS = ("limit", "data_sha256", "training_rows", "validation_rows")
# What else can differ between two rows of one cell, for the message.
_OF_A_CELL = (*_CONDITIONS, "k", "j", "affine", "codes", "bits", "metric", "weights", "training_score")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell: a task, a variant and a seed. The fields are those of docs/results.md, and in this order."""

    task: str
    variant: str
    label: str
    method: str
    k: int | None
    j: int | None
    affine: bool | None
    codes: str | None
    seed: int
    status: str = "done"
    reason: str | None = None
    metrics_before: dict[str, float] | None = None
    metrics_after: dict[str, float] | None = None
    score_before: float | None = None
    score_after: float | None = None
    training_score: float | None = None
    chosen: str | None = None
    params_dense: int
    params_stored: int
    compression_rate: float
    bytes_dense: int
    bytes_stored: int
    bits_per_weight: float
    model_bytes_dense: int
    model_bytes_stored: int
    relative_error: float | None
    training_rows: int
    validation_rows: int
    limit: int | None
    glue: str
    model: str
    model_sha256: str
    protocol: str
    settings: dict[str, Any]
    settings_hash: str
    seconds: dict[str, float]
    device: str
    processes: int
    versions: dict[str, str]
    bits: float | None = None
    metric: str | None = None
    weights: str | None = None
    data_sha256: str | None = None
    # Options of the fit and the model that no other field tells, where they are not the defaults.
    options: dict[str, Any] | None = None
    # What this version does not know of a file; it is written again.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str, str, str, int]:
        """What it measures: no two rows of a report share this."""
        return (self.model_sha256, self.protocol, self.task, self.label, self.seed)

    def as_json(self) -> dict[str, Any]:
        """The row as results.json has it."""
        return {name: getattr(self, name) for name in _FIELDS} | self.extra


_FIELDS = {part.name: part.type for part in fields(Row) if part.default_factory is MISSING}
# What early files are without.
_LATER = ("bits", "metric", "weights", "data_sha256", "options")


def read_results(path: Path) -> list[Row]:
    """The rows of a results.json; an error names the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (FileNotFoundError, NotADirectoryError):
        raise ProjclustError(f"{path} is missing: run `projclust glue-eval` first") from None
    except OSError as error:
        raise ProjclustError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ProjclustError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not _fits(version, int):
        raise ProjclustError(f"{path} was not written by `projclust glue-eval`: it has no schema_version")
    if version != SCHEMA_VERSION:
        raise ProjclustError(f"{path} has schema_version {version}, this projclust reads 1: upgrade projclust")
    if not isinstance(content.get("rows"), list):
        raise ProjclustError(f"{path} is damaged: rows is no list")
    rows = {f"{path} is damaged: row {number}": item for number, item in enumerate(content["rows"])}
    return [checked(parse_row(item, where), where) for where, item in rows.items()]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def parse_row(item: Any, where: str) -> Row:
    """A row from what its JSON holds; an error names `where`, and the field that is missing or of another type."""
    if not isinstance(item, dict):
        raise ProjclustError(f"{where} is no object")
    known = {**dict.fromkeys(_LATER), **item}
    for name, kind in _FIELDS.items():
        if name not in known:
            raise ProjclustError(f"{where} has no {name}")
        if not _fits(known[name], kind):
            raise ProjclustError(f"{where}, {name} is {_short(known[name])}")
    extra = {name: known.pop(name) for name in item if name not in _FIELDS}
    return Row(**known, extra=extra)


def checked(row: Row, where: str) -> Row:
    """The row; an error names `where`, and a field whose value cannot be."""
    wrong = [name for name, choices in _CHOICES.items() if getattr(row, name) not in choices]
    wrong += [name for name in _SIZES if getattr(row, name) < 1]
    wrong += [name for name in _COUNTS if getattr(row, name) < 0]
    for metrics, score in (("metrics_before", "score_before"), ("metrics_after", "score_after")):
        values, points = getattr(row, metrics), getattr(row, score)
        if (points is None) != (not values) or not set(values or ()) <= METRICS:
            wrong.append(metrics)
        elif points is not None and abs(points - 100 * sum(values.values()) / len(values)) > 0.01:
            wrong.append(score)
    if row.status == "done" and row.score_before is None and row.score_after is None:
        wrong.append("score_after")
    if wrong:
        raise ProjclustError(f"{where}, {wrong[0]} is {_short(getattr(row, wrong[0]))}")
    return row


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has an annotated type: a whole number may stand for a float, and true is no number."""
    if isinstance(kind, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(item, get_args(kind)[1]) for item in value.values())
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < 1e300
    return kind is Any or isinstance(value, kind)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def merge_rows(rows: Iterable[Row]) -> list[Row]:
    """Each cell once, the first one given, sorted by model, protocol, task, variant and seed.

    Of two different choices of `best` the one with the higher training score stays: the best of both. An error names
    the difference where two rows measure the same cell, or the same task, in different ways.
    """
    cells: dict[tuple[str, str, str, str, int], Row] = {}
    tasks: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        first = tasks.setdefault((row.model_sha256, row.protocol, row.task), row)
        known = cells.setdefault(row.cell, row)
        if known.settings_hash != row.settings_hash and row.variant != BEST:
            raise ProjclustError(
                f"two results for {row.task}, {row.label}, seed {row.seed} differ in "
                f"{_difference(known, row, _OF_A_CELL) or 'how the embedding was fitted'}: report them separately"
            )
        difference = _difference(first, row, _CONDITIONS)
        if difference:
            raise ProjclustError(
                f"the results for {row.task} cannot be compared: {first.label}, seed {first.seed} and {row.label}, "
                f"seed {row.seed} differ in {difference}: report them separately"
            )
        if row.variant == BEST and (row.training_score or 0.0) > (known.training_score or 0.0):
            cells[row.cell] = row
    return sorted(cells.values(), key=_order)


def _difference(first: Row, second: Row, names: Iterable[str]) -> str:
    """Settings and fields in which two rows differ, with both values."""
    one, two = (
        {f"settings.{name}": value for name, value in row.settings.items()}
        | {name: row.as_json().get(name) for name in names}
        for row in (first, second)
    )
    different = [name for name in dict.fromkeys([*one, *two]) if one.get(name) != two.get(name)]
    return ", ".join(f"{name} ({_short(one.get(name))} and {_short(two.get(name))})" for name in different)


def variant_order(row: Row) -> tuple[bool, int, int, str]:
    """To sort variants by: dense first, then methods from large to small; `best`, which chooses among them, last."""
    if row.variant == BEST:
        return (True, 0, 0, row.label)
    return (False, METHODS.index(row.method), -row.bytes_stored, row.label)


def _order(row: Row) -> tuple[str, int, int, tuple[bool, int, int, str], int]:
    protocol, task = PROTOCOLS.index(row.protocol), list(TASKS).index(row.task)
    return (row.model_sha256, protocol, task, variant_order(row), row.seed)


def write_results(rows: Iterable[Row], path: Path) -> None:
    """Write a results.json, whole or not at all."""
    content = {"schema_version": SCHEMA_VERSION, "rows": [row.as_json() for row in rows]}
    replace_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
