"""results.json: what is read is what was written, and everything else is refused by file and field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from results_samples import diverged, make_row, many_rows

from projclust.errors import ProjclustError
from projclust.results.rows import merge_rows, read_results, write_results


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    write_results([make_row(), diverged(make_row(variant="svd"))], path)
    return path


def refusal(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(ProjclustError) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path: Path, **values: Any) -> str:
    """The file's text with fields of its first row set to other values."""
    content = json.loads(path.read_text())
    content["rows"][0] |= values
    return json.dumps(content)


def test_a_round_trip(tmp_path: Path) -> None:
    rows = [replace(row, weights="uniform", extra={"carbon": 3}) for row in many_rows(["cola", "mnli", "demo"])]
    rows.append(diverged(make_row("rte", "svd")))
    write_results(rows, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text())["schema_version"] == 1


def test_fields_of_later_versions_are_kept(file: Path) -> None:
    file.write_text(changed(file, carbon={"grams": 3}))
    rows = read_results(file)
    assert rows[0].extra == {"carbon": {"grams": 3}}
    write_results(rows, file)
    assert json.loads(file.read_text())["rows"][0]["carbon"] == {"grams": 3}


def test_early_files_are_without_some_fields(file: Path) -> None:
    content = json.loads(file.read_text())
    for name in ("bits", "metric", "weights", "data_sha256"):
        del content["rows"][0][name]
    file.write_text(json.dumps(content))
    assert read_results(file)[0] == make_row()


def test_whole_numbers_may_stand_for_floats(file: Path) -> None:
    file.write_text(changed(file, score_after=50, compression_rate=0))
    assert read_results(file)[0].score_after == 50


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("seed", -1),
        ("task", "squad"),
        ("method", "magic"),
        ("protocol", "mine"),
        ("status", "running"),
        ("bytes_stored", 0),
        ("settings", []),
        ("versions", {"torch": 2}),
        ("seconds", {"fit": "long"}),
        ("score_after", 51.0),
        ("score_after", None),
        ("metrics_after", None),
        ("metrics_after", {"rouge": 0.5}),
        ("label", None),
        ("relative_error", "small"),
    ],
)
def test_wrong_values(file: Path, field: str, value: Any) -> None:
    message = refusal(file, changed(file, **{field: value}))
    assert "is damaged: row 0, " in message
    named = "metrics_after" if field == "score_after" and value is None else field
    assert f"{named} is " in message


def test_damage(file: Path) -> None:
    content = json.loads(file.read_text())
    del content["rows"][1]["glue"]
    assert "row 1 has no glue" in refusal(file, json.dumps(content))
    assert "row 0 is no object" in refusal(file, '{"schema_version": 1, "rows": [3]}')
    assert "rows is no list" in refusal(file, '{"schema_version": 1}')
    assert "is damaged" in refusal(file, "{")
    assert "is damaged" in refusal(file, "[" * 100_000)
    assert "has no schema_version" in refusal(file, "[1]")
    assert "has no schema_version" in refusal(file, '{"score": 3}')
    assert "schema_version 2, this projclust reads 1: upgrade" in refusal(file, '{"schema_version": 2, "rows": []}')
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ProjclustError, match="is damaged"):
        read_results(file)
    with pytest.raises(ProjclustError, match="is missing: run `projclust glue-eval` first"):
        read_results(file.with_name("absent.json"))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(file: Path, number: str) -> None:
    assert "is no number" in refusal(file, file.read_text().replace('"relative_error": 0.0', f'"extra": {number}'))


def test_merging_drops_repetitions_and_the_order_given() -> None:
    rows = many_rows(["rte", "cola"], seeds=(1, 0), ratios=(0.8, 0.4))
    merged = merge_rows([*rows, *reversed(rows)])
    assert merged == merge_rows(reversed(rows))
    assert len(merged) == len(rows)
    assert [row.task for row in merged[:: len(rows) // 2]] == ["cola", "rte"]
    labels = list(dict.fromkeys(row.label for row in merged))
    assert labels[:3] == ["dense", "projective, k=5, j=230", "projective, k=5, j=77"]


def conflict(*rows: Any) -> str:
    with pytest.raises(ProjclustError) as caught:
        merge_rows(rows)
    assert "report them separately" in str(caught.value)
    return str(caught.value)


def test_conflicts_name_what_differs() -> None:
    row = make_row("cola", "svd", seed=3)
    other = make_row("cola", "svd", seed=3, settings={**row.settings, "epochs": 2})
    message = conflict(row, other)
    assert "two results for cola, svd, k=1, j=230, seed 3 differ in settings.epochs (3 and 2):" in message
    assert "limit (null and 100)" in conflict(row, make_row("cola", "svd", seed=3, limit=100))
    data = [replace(row, settings_hash=name, data_sha256=name) for name in ("a", "b")]
    assert 'data_sha256 ("a" and "b")' in conflict(*data)
    assert "how the embedding was fitted" in conflict(row, replace(row, settings_hash="other"))


def test_variants_of_a_task_must_be_comparable() -> None:
    dense = make_row("cola", "dense")
    for change, text in (
        ({"settings": {**dense.settings, "batch_size": 16}}, "settings.batch_size (32 and 16)"),
        ({"limit": 50}, "limit (null and 50)"),
        ({"training_rows": 10}, "training_rows (5000 and 10)"),
        ({"validation_rows": 10}, "validation_rows (1043 and 10)"),
    ):
        message = conflict(dense, make_row("cola", "svd", seed=1, **change))
        assert f"dense, seed 0 and svd, k=1, j=230, seed 1 differ in {text}" in message
    moved = make_row("cola", "svd", seed=1, glue="copy")  # the same rows from another place
    assert len(merge_rows([dense, moved])) == 2
    others: list[dict[str, Any]] = [{"task": "rte"}, {"protocol": "pretrained"}, {"model_sha256": "cd" * 32}]
    for other in others:
        assert len(merge_rows([dense, make_row(**{"task": "cola", "variant": "svd", "limit": 50, **other})])) == 2


def test_of_two_choices_the_better_stays() -> None:
    def best(training_score: float, chosen: str) -> Any:
        return make_row(
            variant="best",
            label="best",
            method="svd",
            chosen=chosen,
            training_score=training_score,
            settings_hash=chosen,
        )

    for rows in ([best(80.0, "a"), best(90.0, "b")], [best(90.0, "b"), best(80.0, "a")]):
        assert [row.chosen for row in merge_rows(rows)] == ["b"]


def test_a_file_that_cannot_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(ProjclustError, match=r"cannot write .*results\.json: .*choose another folder"):
        write_results([make_row()], path)
    assert [left.name for left in tmp_path.iterdir()] == ["results.json"]
