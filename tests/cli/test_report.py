"""`projclust report`: several runs into one report, measured results into a model card, and every wrong input."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Cli, snapshot
from huggingface_hub import ModelCard
from results_samples import diverged, make_row, many_rows

from projclust.checkpoints.folder import locked
from projclust.checkpoints.save import fingerprint
from projclust.results.rows import Row, read_results, write_results

Refused = Callable[..., str]
FILES = {"results.json", "report.md", "report.html", "drop.png", "error.png"}


def results(folder: Path, rows: Iterable[Row]) -> Path:
    """A folder with a results.json."""
    folder.mkdir(exist_ok=True)
    write_results(rows, folder / "results.json")
    return folder


def test_one_folder(cli: Cli, tmp_path: Path) -> None:
    run = results(tmp_path / "run", many_rows(["cola", "rte"]))
    outcome = cli("report", run)
    assert outcome.code == 0
    assert outcome.err == ""
    assert {path.name for path in run.iterdir()} == FILES
    lines = outcome.out.split("\n")
    assert lines[0] == "some-model, protocol paper (trained, compressed, trained further)"
    assert lines[2].split() == ["variant", "smaller", "CoLA", "RTE", "average", "drop", "before", "drop", "after"]
    assert lines[3].split()[:2] == ["dense", "1.00x"]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert f"written  {run}" in lines
    assert f"next: open {run}/report.html in a browser" in lines
    before = snapshot(tmp_path)
    assert cli("report", run).code == 0
    assert snapshot(tmp_path) == before


def test_notes_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    rows = many_rows(["rte", "demo"], ("dense", "svd"), (0,), limit=40)
    text = cli("report", results(tmp_path / "run", [*rows[:-1], diverged(rows[-1])])).out
    note = text.split("\n")[1]
    for part in ("one seed, no standard errors", "1 diverged", "demonstration data, not GLUE", "limited to 40 rows"):
        assert part in note
    assert "dense was not measured" in cli("report", results(tmp_path / "two", [make_row(variant="svd")])).out


def test_several_folders_are_merged(cli: Cli, tmp_path: Path) -> None:
    rows = many_rows(["cola", "rte"])
    first, second = results(tmp_path / "a", rows[:15]), results(tmp_path / "b", rows[10:])
    found = cli("report", first, second, "-o", tmp_path / "both", "--format", "json").json
    assert found["output"] == str(tmp_path / "both")
    assert found["card"] is None
    (group,) = found["groups"]
    assert (group["model"], group["protocol"], group["seeds"]) == ("some-lab/some-model", "paper", [0, 1, 2])
    assert [task["task"] for task in group["tasks"]] == ["cola", "rte"]
    assert len(group["results"]) == 8
    assert {result["after"]["score"]["seeds"] for result in group["results"]} == {3}
    assert len(read_results(tmp_path / "both" / "results.json")) == len(rows)
    assert {path.name for path in first.iterdir()} == {"results.json"}
    reverse = cli("report", second, first, "-o", tmp_path / "again", "--format", "json").json
    assert reverse["groups"] == found["groups"]
    assert (tmp_path / "again" / "report.html").read_bytes() == (tmp_path / "both" / "report.html").read_bytes()


def test_open_shows_the_page_where_there_is_a_browser(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = results(tmp_path / "run", many_rows(["cola"]))
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not shown.append(url))  # type: ignore[func-returns-value]
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    outcome = cli("report", run, "--open")
    assert (outcome.code, shown) == (0, [])
    assert f"next: open {run}/report.html in a browser" in outcome.out
    monkeypatch.setenv("BROWSER", "some-browser")
    assert "next: read the report in the browser" in cli("report", run, "--open").out
    assert shown == [(run / "report.html").as_uri()]
    assert cli("report", run).code == 0
    assert len(shown) == 1


def test_a_config_file(cli: Cli, tmp_path: Path) -> None:
    run = results(tmp_path / "run", many_rows(["cola"]))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "format": "json"}))
    assert cli("report", run, "--config", tmp_path / "recipe.yaml").json["output"] == str(tmp_path / "out")


def test_inputs_that_are_none(refused: Refused, tmp_path: Path) -> None:
    run = results(tmp_path / "run", many_rows(["cola"]))
    assert "DIR" in refused("report")
    assert "there is no folder" in refused("report", tmp_path / "absent")
    assert "there is no folder" in refused("report", run / "results.json")
    assert refused("report", "x" * 300)
    (tmp_path / "empty").mkdir()
    assert "results.json is missing: run `projclust glue-eval` first" in refused("report", tmp_path / "empty")
    assert "there are no results" in refused("report", results(tmp_path / "none", []))
    assert "say with --output where to write it" in refused("report", run, run)


def test_damaged_and_newer_results(refused: Refused, tmp_path: Path) -> None:
    run = results(tmp_path / "run", many_rows(["cola"]))
    file = run / "results.json"
    content = json.loads(file.read_text())
    file.write_text(file.read_text()[:1000])
    assert f"{file} is damaged" in refused("report", run)
    file.write_text(json.dumps({**content, "schema_version": 2}))
    assert "upgrade projclust" in refused("report", run)
    content["rows"][2]["score_after"] = "high"
    file.write_text(json.dumps(content))
    assert 'row 2, score_after is "high"' in refused("report", run)


def test_results_that_contradict_each_other(refused: Refused, tmp_path: Path) -> None:
    run = results(tmp_path / "run", [make_row("cola", seed=4)])
    settings = {**make_row().settings, "learning_rate": 1e-4}
    other = results(tmp_path / "other", [make_row("cola", seed=4, settings=settings)])
    message = refused("report", run, other, "-o", tmp_path / "out")
    assert "two results for cola, dense, seed 4 differ in settings.learning_rate (3e-05 and 0.0001)" in message


def test_outputs(refused: Refused, cli: Cli, tmp_path: Path) -> None:
    run = results(tmp_path / "run", many_rows(["cola"]))
    other = results(tmp_path / "other", many_rows(["rte"]))
    assert "holds results that no DIR has" in refused("report", run, "-o", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.md").write_text("my thesis")
    assert "holds other files and no results.json" in refused("report", run, "-o", tmp_path / "mine")
    assert "is not a folder" in refused("report", run, "-o", tmp_path / "mine" / "report.md")
    assert "cannot use" in refused("report", run, "-o", tmp_path / ("x" * 300))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".report.md.partial").write_text("from a run that was killed")
    for out in (tmp_path / "empty", other, tmp_path / "new", tmp_path / "absent" / "parents" / "out"):
        assert cli("report", run, other, "-o", out).code == 0
    assert len(read_results(other / "results.json")) == 24


def test_a_folder_in_use(refused: Refused, tmp_path: Path) -> None:
    run = results(tmp_path / "run", many_rows(["cola"]))
    with locked(run):
        assert "another run is writing to" in refused("report", run)


@pytest.fixture
def measured(compressed_folder: Path, tmp_path: Path) -> Path:
    """Results of the compressed folder, a diverged cell and the demonstration among them."""
    own: dict[str, Any] = {"protocol": "as-is", "model_sha256": fingerprint(compressed_folder)}
    rows = many_rows(["mrpc", "mnli", "demo"], ("compressed",), **own)
    rows += [make_row("cola", "compressed", 0, None, 42.0, limit=100, **own)]
    rows += [diverged(make_row("cola", "compressed", 1, limit=100, **own))]
    rows += many_rows(["qqp"])  # of another model
    return results(tmp_path / "measured", rows)


def metadata(card: Path) -> dict[str, Any]:
    result = yaml.safe_load(card.read_text().split("---\n")[1])
    assert isinstance(result, dict)
    return result


def line_of(text: str, *parts: str) -> str:
    """The one line that has all parts."""
    (found,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return found


def test_a_card(cli: Cli, compressed_folder: Path, measured: Path) -> None:
    card = compressed_folder / "README.md"
    body = "\n# My model\r\n\nWritten by hand: ä.\n"
    card.write_bytes(f"---\nlicense: mit  # checked\ntags:\n- projclust\n---\n{body}".encode())
    assert cli("report", measured, "--card", compressed_folder, "--format", "json").json["card"] == str(card)
    text = card.read_bytes().decode()
    assert text.startswith("---\nlicense: mit  # checked\ntags:\n- projclust\nmodel-index:\n")
    assert f"\n---\n{body}" in text
    found = ModelCard.load(card, ignore_metadata_errors=False).data.eval_results
    assert found is not None
    assert {(result.task_type, result.dataset_type) for result in found} == {("text-classification", "nyu-mll/glue")}
    places = [(r.dataset_name, r.dataset_config, r.dataset_split, r.metric_type) for r in found]
    assert set(places) == {
        ("GLUE MRPC", "mrpc", "validation", "accuracy"),
        ("GLUE MRPC", "mrpc", "validation", "f1"),
        ("GLUE MNLI", "mnli", "validation_matched", "accuracy"),
        ("GLUE MNLI", "mnli", "validation_mismatched", "accuracy"),
    }
    # CoLA is limited, and what was fine-tuned is no result of these weights: the section alone has them.
    names = {result.metric_name for result in found if result.dataset_config == "mrpc"}
    assert names == {
        f"{name}, mean of 3 seeds, 408 validation rows (projclust glue-eval)" for name in ("accuracy", "F1")
    }
    assert line_of(text, "| MRPC | F1 |", "after fine-tuning on the task |") != line_of(
        text, "| MRPC | F1 |", "without fine-tuning |"
    )
    assert "| COLA (limited to 100 rows of a split) | Matthews correlation | 0.4200 | 1 | 1,043 |" in text
    assert "demo" not in text.lower()
    # The card is no part of what was measured.
    assert fingerprint(compressed_folder) in {row.model_sha256 for row in read_results(measured / "results.json")}


def test_a_card_is_written_again_in_place(cli: Cli, compressed_folder: Path, measured: Path) -> None:
    card = compressed_folder / "README.md"
    foreign: dict[str, Any] = {
        "name": "mine",
        "results": [
            {
                "task": {"type": "text-classification"},
                "dataset": {"name": "GLUE COLA", "type": "nyu-mll/glue"},
                "metrics": [{"type": "matthews_correlation", "value": 0.1, "name": "by me"}],
            }
        ],
    }
    head = yaml.safe_dump({"model-index": [foreign], "license": "mit"}, sort_keys=False)
    card.write_text(f"---\n{head}---\n# My model\n")
    cli("report", measured, "--card", compressed_folder)
    first = card.read_text()
    card.write_text(first + "\nAdded below by hand.\n")
    cli("report", measured, "--card", compressed_folder)
    assert card.read_text() == first + "\nAdded below by hand.\n"
    assert metadata(card)["model-index"][0]["results"][0] == foreign["results"][0]
    assert metadata(card)["model-index"][0]["name"] == "mine"
    assert metadata(card)["license"] == "mit"
    assert first.count("## Measured accuracy") == 1


def test_results_that_are_none_of_these_weights_leave_no_index(
    cli: Cli, compressed_folder: Path, tmp_path: Path
) -> None:
    own: dict[str, Any] = {"protocol": "as-is", "model_sha256": fingerprint(compressed_folder)}
    card = compressed_folder / "README.md"
    old = cli(
        "report", results(tmp_path / "whole", many_rows(["cola"], ("compressed",), **own)), "--card", compressed_folder
    )
    assert old.code == 0
    assert "model-index" in metadata(card)
    rows = many_rows(["cola"], ("compressed",), limit=50, **own)
    assert cli("report", results(tmp_path / "limited", rows), "--card", compressed_folder).code == 0
    head, text = card.read_text().split("---\n")[1:3]
    assert "model-index" not in head
    assert "| COLA (limited to 50 rows of a split) |" in text


def test_a_folder_without_a_card_gets_one(cli: Cli, compressed_folder: Path, measured: Path) -> None:
    assert cli("report", measured, "--card", compressed_folder).code == 0
    card = compressed_folder / "README.md"
    assert metadata(card)["model-index"][0]["name"] == "tiny-compressed"
    assert "## Measured accuracy" in card.read_text()


def test_an_index_in_another_style_is_replaced_as_well(cli: Cli, compressed_folder: Path, measured: Path) -> None:
    card = compressed_folder / "README.md"
    card.write_text('---\n{"license": "mit", "model-index": []}\n---\n')
    cli("report", measured, "--card", compressed_folder)
    assert set(metadata(card)) == {"license", "model-index"}


def test_cards_that_cannot_be_written(
    refused: Refused, cli: Cli, tiny_folder: Path, compressed_folder: Path, measured: Path, tmp_path: Path
) -> None:
    def error(folder: Path, run: Path = measured) -> str:
        return refused("report", run, "--card", folder)

    assert "there is no folder" in error(tmp_path / "absent")
    assert "config.json is missing" in error(measured)
    assert "is not compressed by projclust" in error(tiny_folder)
    own: dict[str, Any] = {"model_sha256": fingerprint(compressed_folder)}
    hint = f"run `projclust glue-eval {compressed_folder}` first"
    assert hint in error(compressed_folder, results(tmp_path / "other", many_rows(["cola"])))
    demo = many_rows(["demo"], ("compressed",), protocol="as-is", **own)
    assert hint in error(compressed_folder, results(tmp_path / "demo", demo))
    # Scores of other variants are not this checkpoint's.
    assert hint in error(compressed_folder, results(tmp_path / "paper", many_rows(["cola"], **own)))
    card = compressed_folder / "README.md"
    card.write_text("---\nlicense: [\n---\n")
    assert "the metadata of README.md is damaged" in error(compressed_folder)
    card.write_text("---\nmodel-index: [{name: x}]\n---\n")
    assert "the metadata of README.md is damaged" in error(compressed_folder)
    card.write_bytes(b"\xff")
    assert "is not UTF-8" in error(compressed_folder)
    card.unlink()
    (compressed_folder / "config.json").write_text((compressed_folder / "config.json").read_text() + " ")
    assert hint in error(compressed_folder)
