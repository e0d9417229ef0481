"""The rows of the tasks, read from a folder, the Hub or the package."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from projclust.errors import ProjclustError, ServiceError, is_out_of_reach
from projclust.glue.tasks import DEMO, TASKS, Task

HUB_GLUE = "nyu-mll/glue"
_DEMO_FOLDER = Path(__file__).parent / DEMO


@dataclass(frozen=True)
class Rows:
    """Rows of one split: one list of texts for each text column, and the labels (class numbers, or floats)."""

    texts: tuple[list[str], ...]
    labels: Sequence[float]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """The rows of a task, their source in words and their hash; `validation` is keyed by the suffix of metric names."""

    task: Task
    train: Rows
    validation: dict[str, Rows]
    source: str
    sha256: str


def load_task(name: str, glue_dir: str | None, limit: int | None = None) -> TaskData:
    """Read a task from a folder of nyu-mll/glue's layout, or from the Hub when there is no folder.

    With `limit`, each split has at most so many rows, drawn at random but always the same ones.
    """
    task = TASKS[name]
    place = "projclust" if name == DEMO else glue_dir if glue_dir is not None else HUB_GLUE
    splits: dict[str, Rows] = {}
    digest = hashlib.sha256()
    for split in ("train", *task.validation):
        try:
            columns = _read(task, split, glue_dir)
        except ProjclustError:
            raise
        except Exception as error:  # damaged files and a silent Hub raise many kinds
            hint = "; without the Hub, name a folder of its layout with --glue-dir" if place == HUB_GLUE else ""
            reason = " ".join(str(error).split())[:200]
            kind = ServiceError if is_out_of_reach(error) else ProjclustError
            raise kind(f"cannot read {name} ({split}) from {place}: {reason}{hint}") from error
        rows = splits[split] = _rows(task, split, columns, limit)
        digest.update(json.dumps([split, rows.texts, rows.labels]).encode())
    source = Path(place).resolve().name if place == glue_dir else place
    validation = {suffix: splits[split] for split, suffix in task.validation.items()}
    return TaskData(task, splits["train"], validation, source, digest.hexdigest())


def _read(task: Task, split: str, glue_dir: str | None) -> dict[str, list[Any]]:
    """Read the columns of one split; local files are read as they are now, past the cache of `datasets`."""
    if task.name == DEMO:
        lines = (_DEMO_FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return {name: [row[name] for row in rows] for name in rows[0]}
    if glue_dir is None:
        from datasets import disable_progress_bars, load_dataset  # slow to import, and needed for this alone

        disable_progress_bars()
        return dict(load_dataset(HUB_GLUE, task.name, split=split).to_dict())
    if not Path(glue_dir).is_dir():
        raise ProjclustError(f"there is no folder {glue_dir}: --glue-dir takes a folder of {HUB_GLUE}'s layout")
    files = sorted((Path(glue_dir) / task.name).glob(f"{split}-*.parquet"))
    if saved := _saved(Path(glue_dir) / task.name / split):
        return dict(pyarrow.concat_tables([pyarrow.ipc.open_stream(file).read_all() for file in saved]).to_pydict())
    if not files:
        raise ProjclustError(f"{glue_dir} has no task {task.name}: {task.name}/{split}-*.parquet is missing there")
    return dict(pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]).to_pydict())


def _saved(folder: Path) -> list[Path]:
    """The files of a split that `save_to_disk` of `datasets` wrote, in their order; none where it did not."""
    state = folder / "state.json"
    if not state.is_file():
        return []
    return [folder / own["filename"] for own in json.loads(state.read_bytes())["_data_files"]]


def _rows(task: Task, split: str, columns: dict[str, list[Any]], limit: int | None) -> Rows:
    for column in (*task.sentences, "label"):
        if column not in columns:
            raise ProjclustError(f"the {split} rows of {task.name} have no column {column!r}")
    count = len(columns["label"])
    if count == 0:
        raise ProjclustError(f"the {split} split of {task.name} has no rows")
    chosen: Sequence[int] = range(count)
    if limit is not None and count > limit:
        chosen = numpy.random.default_rng(0).permutation(count)[:limit].tolist()
    texts = tuple([columns[column][row] for row in chosen] for column in task.sentences)
    for column, values in zip(task.sentences, texts, strict=True):
        if not all(isinstance(value, str) for value in values):
            raise ProjclustError(f"the {split} rows of {task.name} hold a {column} that is no text")
    return Rows(texts, [_label(task, split, columns["label"][row]) for row in chosen])


def _label(task: Task, split: str, value: Any) -> Any:
    """Return a label as a class number, or for regression as a score."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if task.labels and number in range(len(task.labels)):
        return int(number)
    if not task.labels and 0 <= number <= 5:
        return number
    raise ProjclustError(f"the {split} rows of {task.name} hold the label {value!r}, which is none of its own")
