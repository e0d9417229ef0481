import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from projclust.errors import ProjclustError
from projclust.glue.data import load_task
from projclust.glue.tasks import DEMO, GLUE, TASKS, parse_tasks


def test_the_nine_tasks_have_their_official_metrics() -> None:
    assert len(GLUE) == 9
    assert {name: TASKS[name].metrics for name in GLUE} == {
        "cola": ("matthews_correlation",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearmanr"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }
    assert list(TASKS["mnli"].validation.values()) == ["_matched", "_mismatched"]


def test_parse_tasks() -> None:
    assert parse_tasks("all") == GLUE
    assert parse_tasks("cola, SST-2,sts-b,cola") == ("cola", "sst2", "stsb")
    assert parse_tasks("demo,all") == ("demo", *GLUE)
    for text in ("", ",", "colla", "all,x"):
        with pytest.raises(ProjclustError, match="--tasks"):
            parse_tasks(text)


def test_the_demonstration_needs_no_folder_and_is_balanced() -> None:
    data = load_task(DEMO, None)
    (validation,) = data.validation.values()
    assert data.source == "projclust"
    for rows, count in ((data.train, 400), (validation, 200)):
        assert len(rows) == count
        assert sum(rows.labels) == count / 2
        assert len(set(rows.texts[0])) == count
    assert not set(data.train.texts[0]) & set(validation.texts[0])


def test_a_folder_of_data_sets_that_were_saved_to_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = {"sentence": [f"sentence {number}" for number in range(40)], "label": [number % 2 for number in range(40)]}
    saved = DatasetDict({"train": Dataset.from_dict(rows), "validation": Dataset.from_dict(rows).shuffle(seed=0)})
    saved.save_to_disk(tmp_path / "sst2", num_shards={"train": 3, "validation": 1})
    data = load_task("sst2", str(tmp_path))
    assert (data.train.texts[0], list(data.train.labels)) == (rows["sentence"], rows["label"])
    assert data.validation[""].texts[0] == saved["validation"]["sentence"]
    (tmp_path / "sst2" / "train" / "state.json").write_text("{}")
    with pytest.raises(ProjclustError, match="cannot read sst2"):
        load_task("sst2", str(tmp_path))


@pytest.mark.parametrize("name", GLUE)
def test_every_task_of_the_real_data_loads(glue_dir: str, name: str) -> None:
    data = load_task(name, glue_dir, limit=20)
    assert len(data.train) == 20
    assert set(data.validation) == set(TASKS[name].validation.values())
    assert len(data.train.texts) == len(TASKS[name].sentences)
    assert all(len(texts) == 20 and all(texts) for texts in data.train.texts)


def test_complete_tasks_have_the_rows_of_glue(glue_dir: str) -> None:
    sizes = {"cola": (8551, 1043), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277), "wnli": (635, 71)}
    for name, (train, validation) in sizes.items():
        data = load_task(name, glue_dir)
        assert (len(data.train), len(data.validation[""])) == (train, validation)


def write_split(folder: Path, task: str, split: str, columns: Mapping[str, Sequence[object]]) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / task / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def rte(tmp_path: Path) -> Path:
    for split, count in (("train", 40), ("validation", 10)):
        texts = [f"{split} {index}" for index in range(count)]
        write_split(
            tmp_path, "rte", split, {"sentence1": texts, "sentence2": texts, "label": [i % 2 for i in range(count)]}
        )
    return tmp_path


def test_a_limit_draws_the_same_rows_of_both_splits_each_time(rte: Path) -> None:
    whole, first, second = load_task("rte", str(rte)), load_task("rte", str(rte), 8), load_task("rte", str(rte), 8)
    assert (len(whole.train), len(whole.validation[""])) == (40, 10)
    assert (len(first.train), len(first.validation[""])) == (8, 8)
    assert first.train == second.train
    assert first.train.texts[0] != whole.train.texts[0][:8]  # drawn, not the first ones
    assert set(first.train.texts[0]) < set(whole.train.texts[0])
    assert first.sha256 == second.sha256 != whole.sha256
    assert load_task("rte", str(rte), 1000).sha256 == whole.sha256


def test_other_rows_have_another_hash_even_with_the_old_files_time(rte: Path) -> None:
    before = load_task("rte", str(rte)).sha256
    path = rte / "rte" / "validation-00000-of-00001.parquet"
    times = path.stat()
    texts = [f"validation {index}" for index in range(10)]
    write_split(rte, "rte", "validation", {"sentence1": texts, "sentence2": texts, "label": [0] * 10})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_task("rte", str(rte)).sha256 != before


@pytest.mark.parametrize("labels", [[1.0, 0.0], [True, False], ["1", "0"]])
def test_labels_of_other_kinds_are_class_numbers_too(rte: Path, labels: list[object]) -> None:
    write_split(rte, "rte", "train", {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": labels})
    assert load_task("rte", str(rte)).train.labels == [1, 0]
    assert all(type(label) is int for label in load_task("rte", str(rte)).train.labels)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "rte"), "has no task rte: rte/train-*.parquet is missing"),
        (lambda folder: (folder / "rte" / "validation-00000-of-00001.parquet").unlink(), "rte/validation-*.parquet"),
        (lambda folder: (folder / "rte" / "train-00000-of-00001.parquet").write_bytes(b"x"), "cannot read rte (train)"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "label": [0]}), "no column 'sentence2'"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "sentence2": ["b"], "label": [-1]}), "label -1"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "sentence2": ["b"], "label": [2]}), "label 2"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "sentence2": [None], "label": [1]}), "a sentence2 that is no text"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "sentence2": ["b"], "label": [0.5]}), "label 0.5"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "sentence2": ["b"], "label": [float("nan")]}), "label nan"),
        (lambda folder: write_split(folder, "rte", "train", {"sentence1": ["a"], "sentence2": ["b"], "label": [None]}), "label None"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_glue_is_refused(rte: Path, break_it: object, message: str) -> None:
    assert callable(break_it)
    break_it(rte)
    with pytest.raises(ProjclustError) as caught:
        load_task("rte", str(rte))
    assert message in str(caught.value)
    with pytest.raises(ProjclustError, match="there is no folder"):
        load_task("rte", str(rte / "absent"))


def test_without_a_folder_and_without_the_hub_the_message_says_what_to_do() -> None:
    with pytest.raises(ProjclustError, match="cannot read rte .* from nyu-mll/glue: .*--glue-dir"):
        load_task("rte", None)


def test_the_demonstration_is_json_lines() -> None:
    path = Path(load_task.__code__.co_filename).parent / "demo" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["idx"] for row in rows] == list(range(len(rows)))
