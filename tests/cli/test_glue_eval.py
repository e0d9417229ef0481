"""`projclust glue-eval` on the demonstration task, with a tiny model."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from commandline import Cli, Outcome, snapshot
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from projclust.checkpoints.classifier import load_classifier
from projclust.cli.derive import flat
from projclust.glue.experiment import measure
from projclust.glue.settings import Settings, parse_per_task, settings_for
from projclust.glue.tasks import TASKS, parse_tasks
from projclust.glue.variants import parse_variants
from projclust.hf.compression import compress_model
from projclust.jobs.options import GlueEvalOptions
from projclust.recipes.recipe import Recipe
from projclust.recipes.subspaces import shape_of
from projclust.shapes import DenseShape

QUICK = ("--tasks", "demo", "--limit", 64, "--seeds", 0, "--k", 3, "--j", 6, "--restarts", 1, "--max-length", 32)
TRAINING = ("--learning-rate", "1e-2", "--baseline-epochs", 2, "--epochs", 1)


def rows(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "results.json").read_text())
    assert content["schema_version"] == 1
    return list(content["rows"])


def by_variant(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in rows(folder)}


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


@pytest.fixture
def run(cli: Cli, tiny_classifier: Path, tmp_path: Path) -> Any:
    def call(*more: object, model: Path = tiny_classifier, out: str = "out") -> Outcome:
        return cli("glue-eval", model, *QUICK, *TRAINING, "-o", tmp_path / out, *more)

    return call


def test_a_run_measures_every_cell_and_writes_the_report(run: Any, tmp_path: Path) -> None:
    outcome = run()
    assert outcome.code == 0, outcome
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "report.md", "report.html", "drop.png", "error.png", "projclust_options.yaml"} <= names
    assert "scratch" not in names
    assert "projective, k=3, j=6" in outcome.out
    assert outcome.err.splitlines()[0].startswith("1/3  demo (limited to 64 rows), seed 0, dense: ")
    assert outcome.err.splitlines()[0].endswith(" after training (64 rows)")
    assert len(outcome.err.splitlines()) == 3
    assert "64" in (out / "report.md").read_text()

    found = by_variant(out)
    assert list(found) == ["dense", "projective", "svd"]
    dense, svd, projective = found["dense"], found["svd"], found["projective"]
    for row in found.values():
        assert (row["status"], row["limit"], row["training_rows"], row["validation_rows"]) == ("done", 64, 64, 64)
        assert row["score_before"] == pytest.approx(100 * row["metrics_before"]["accuracy"])
        assert row["score_after"] == pytest.approx(100 * row["metrics_after"]["accuracy"])
        assert row["protocol"] == "paper"
        assert row["seconds"]["train"] > 0
        assert row["seconds"]["baseline"] == dense["seconds"]["baseline"] > 0  # trained once
    assert (dense["compression_rate"], dense["relative_error"]) == (0.0, 0.0)
    assert dense["bytes_stored"] == dense["bytes_dense"] == dense["params_dense"] * 4
    assert 0 < projective["relative_error"] < svd["relative_error"] < 1
    assert svd["params_stored"] <= projective["params_stored"]
    assert projective["params_stored"] == dense["params_dense"] * (1 - projective["compression_rate"])
    assert projective["bytes_stored"] == 4 * projective["params_stored"] + projective["params_dense"] // 16  # ids
    saved = dense["model_bytes_stored"] - projective["model_bytes_stored"]
    assert saved == dense["bytes_stored"] - projective["bytes_stored"]


def test_the_same_command_again_does_nothing_and_says_the_same(run: Any, tmp_path: Path) -> None:
    first, results = run(), rows(tmp_path / "out")
    again = run("--format", "json")
    assert again.json["measured"] == 0
    assert rows(tmp_path / "out") == results
    assert first.code == 0
    # Elsewhere, from scratch: the same numbers.
    assert run(out="other").code == 0
    assert list(map(without_times, rows(tmp_path / "other"))) == list(map(without_times, results))


@pytest.mark.parametrize(
    "more",
    [
        ("--restarts", 2, "--tol", 0.01, "--loss", "huber", "--weights", "uniform", "--warmup", 0.1),
        ("--variants", "dense,projective:bits=2:weights=wordfreq:en,int4,svd", "--per-task", "demo:batch-size=16"),
        ("--protocol", "pretrained", "--variants", "projective:k=2:ranks=adaptive,random", "--freeze-embedding"),
    ],
    ids=["fit", "variants", "pretrained"],
)
def test_the_reports_command_is_the_same_experiment(
    run: Any, cli: Cli, tmp_path: Path, more: tuple[object, ...]
) -> None:
    first = run(*more, "--format", "json")
    assert first.code == 0, first
    measured = first.json["measured"]
    assert measured > 1
    text = (tmp_path / "out" / "report.md").read_text()
    (command,) = [line for line in text.split("\n") if line.startswith("projclust glue-eval")]
    again = cli(*shlex.split(command)[1:], "-o", tmp_path / "out", "--format", "json")
    assert again.code == 0, again
    assert again.json["measured"] == 0


def test_more_seeds_tasks_and_variants_are_added_to_what_is_there(run: Any, tmp_path: Path) -> None:
    assert run("--variants", "dense").code == 0
    before = rows(tmp_path / "out")
    assert run("--variants", "dense,random", "--seeds", "0,1", "--format", "json").json["measured"] == 3
    assert len(rows(tmp_path / "out")) == 4
    # A command for one seed reports the other one as well: the settings are the same.
    assert run("--variants", "random", "--seeds", "1", "--format", "json").json["measured"] == 0
    assert len(rows(tmp_path / "out")) == 4
    assert before[0] in rows(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        ("--learning-rate", "2e-2"),
        ("--epochs", 2),
        ("--limit", 32),
        ("--per-task", "demo:warmup=0.5"),
        ("--freeze-embedding",),
        ("--protocol", "pretrained"),
    ],
)
def test_other_settings_never_mix_with_old_results(run: Any, tmp_path: Path, change: tuple[object, ...]) -> None:
    variants = ("--variants", "projective")
    assert run(*variants).code == 0
    (old,) = rows(tmp_path / "out")
    outcome = run(*variants, *change)
    assert outcome.code == 0
    assert "warning: 1 cells in" in outcome.err
    (new,) = rows(tmp_path / "out")
    assert new["settings_hash"] != old["settings_hash"]
    assert run(*variants, "--format", "json").json["measured"] == 0  # the old ones are still there
    assert rows(tmp_path / "out") == [old]


def test_another_model_under_the_same_name_is_measured_anew(run: Any, tiny_classifier: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_classifier, copy)
    assert run("--variants", "dense", model=copy).code == 0
    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    assert run("--variants", "dense", "--format", "json", model=copy).json["measured"] == 1


def test_protocol_pretrained_compresses_first_and_has_no_score_before(run: Any, tmp_path: Path) -> None:
    assert run("--protocol", "pretrained").code == 0
    for row in rows(tmp_path / "out"):
        assert (row["protocol"], row["metrics_before"], row["score_before"]) == ("pretrained", None, None)
        assert row["score_after"] is not None
        assert row["seconds"]["baseline"] == 0
    assert not (tmp_path / "out" / "models").exists()


def test_a_compressed_model_is_trained_and_scored_as_it_is(
    run: Any, cli: Cli, tiny_classifier: Path, tmp_path: Path
) -> None:
    compressed = tmp_path / "compressed"
    assert cli("compress", tiny_classifier, "--k", 2, "--j", 4, "-o", compressed).code == 0
    arguments = ("glue-eval", compressed, "--tasks", "demo", "--limit", 64, "--seeds", 0, "--max-length", 32)
    outcome = cli(*arguments, "--epochs", 1, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome
    (row,) = rows(tmp_path / "out")
    assert (row["variant"], row["method"], row["protocol"]) == ("compressed", "compressed", "as-is")
    assert (row["k"], row["j"]) == (2, 4)
    report = json.loads((compressed / "projclust_report.json").read_text())
    for name in (
        "bytes_dense",
        "bytes_stored",
        "bits_per_weight",
        "relative_error",
        "compression_rate",
        "params_stored",
    ):
        assert row[name] == pytest.approx(report[name]), name
    refused = cli(*arguments, "--variants", "svd", "-o", tmp_path / "other")
    assert refused.code == 2
    assert "scored as it is, without --variants" in refused.err


def test_a_body_is_counted_and_scored_as_it_is_stored(
    run: Any, cli: Cli, tiny_classifier: Path, tmp_path: Path
) -> None:
    outcome = run("--variants", "dense,projective,projective:body=int4")
    assert outcome.code == 0, outcome
    found = by_variant(tmp_path / "out")
    plain, small = found["projective"], found["projective:body=int4"]
    assert small["bytes_stored"] == plain["bytes_stored"]
    assert small["model_bytes_stored"] < plain["model_bytes_stored"] < found["dense"]["model_bytes_stored"]
    # The compressed model by itself: as many bytes, and beside them what it was.
    compressed = tmp_path / "compressed"
    assert cli("compress", tiny_classifier, "--k", 3, "--j", 6, "--body", "int4", "-o", compressed).code == 0
    arguments = ("glue-eval", compressed, "--tasks", "demo", "--limit", 64, "--seeds", 0, "--max-length", 32)
    assert cli(*arguments, "--epochs", 1, "-o", tmp_path / "own").code == 0
    (row,) = rows(tmp_path / "own")
    report = json.loads((compressed / "projclust_report.json").read_text())
    for name in ("model_bytes_stored", "model_bytes_dense"):
        assert row[name] == report[name], name


def test_a_classifier_that_is_trained_already_is_scored_without_training(
    run: Any, cli: Cli, tiny_classifier: Path, tmp_path: Path
) -> None:
    """The dense model that a first run left is a fine-tuned checkpoint; compress it, then only score it."""
    assert run("--variants", "dense,projective").code == 0
    (tuned,) = (tmp_path / "out" / "models").iterdir()
    model = load_classifier(tuned, TASKS["demo"].labels)
    assert model.head_is_stored
    compressed = tmp_path / "compressed"
    compress_model(model.model, k=3, j=6, restarts=1).save_pretrained(compressed)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_classifier / name, compressed / name)
    outcome = cli(
        "glue-eval",
        compressed,
        "--tasks",
        "demo",
        "--limit",
        64,
        "--max-length",
        32,
        "--seeds",
        0,
        "--epochs",
        0,
        "-o",
        tmp_path / "scored",
    )
    assert outcome.code == 0, outcome
    (row,) = rows(tmp_path / "scored")
    assert row["score_after"] is None
    assert row["score_before"] == by_variant(tmp_path / "out")["projective"]["score_before"]


def test_best_is_the_variant_with_the_best_training_score(run: Any, tmp_path: Path) -> None:
    assert run("--variants", "dense,projective:k=1,projective:k=2,projective:k=3,best").code == 0
    found = by_variant(tmp_path / "out")
    candidates = [row for name, row in found.items() if name.startswith("projective")]
    assert len(candidates) == 3
    assert all(row["training_score"] is not None for row in candidates)
    top = max(row["training_score"] for row in candidates)
    best = found["best"]
    assert best["training_score"] == top
    assert best["chosen"] in {row["label"] for row in candidates if row["training_score"] == top}
    assert best["score_after"] in {row["score_after"] for row in candidates if row["label"] == best["chosen"]}
    assert (
        run("--variants", "dense,projective:k=1,projective:k=2,projective:k=3,best", "--format", "json").json[
            "measured"
        ]
        == 0
    )


def test_best_is_one_of_the_variants_before_it(run: Any, tmp_path: Path) -> None:
    variants = ("--variants", "dense,projective:k=1,projective:k=2,best,int4,projective:k=3")
    assert run(*variants, "--learning-rate", "1e-9").code == 0
    found = by_variant(tmp_path / "out")
    scored = {name for name, row in found.items() if row["training_score"] is not None}
    assert scored == {"projective:k=1", "projective:k=2", "best"}
    (line,) = [line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if "glue-eval" in line]
    said = re.search(r"--variants (\S+)", line)  # chooses among the same
    assert said is not None
    assert said[1] == "dense,projective:k=2:j=6,projective:k=1:j=6,best,projective:k=3:j=6,int4"
    # What was scored for another choice is no rival either.
    assert run("--variants", "dense,int4,projective:k=3,best", "--learning-rate", "1e-9").code == 0
    assert run(*variants, "--learning-rate", "1e-9").code == 0
    assert by_variant(tmp_path / "out")["best"]["chosen"] == found["best"]["chosen"]


def test_a_stop_reports_what_was_measured(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def stops_at_the_third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    variants = ("--variants", "dense,projective:k=1,projective:k=2,best")
    with monkeypatch.context() as patch:
        patch.setattr("projclust.jobs.glue_eval.measure", stops_at_the_third)
        assert run(*variants).code == 130
    # The best of the measured ones is not what was asked for.
    assert list(by_variant(tmp_path / "out")) == ["dense", "projective:k=1"]
    assert (tmp_path / "out" / "report.md").exists()
    assert run(*variants, "--format", "json").json["measured"] == 1
    assert "best" in by_variant(tmp_path / "out")


def test_a_diverged_cell_is_reported_as_such_and_not_as_a_score(run: Any, tmp_path: Path) -> None:
    outcome = run("--learning-rate", "1e30", "--warmup", 0, "--epochs", 40, "--variants", "dense,svd")
    assert outcome.code == 0, outcome
    assert "diverged: already the dense model's training: the loss became nan" in outcome.err
    for row in rows(tmp_path / "out"):
        assert row["status"] == "diverged"
        assert row["score_before"] is None
        assert row["score_after"] is None
        assert "the loss became" in row["reason"]
    assert "diverged" in (tmp_path / "out" / "report.md").read_text()
    assert (
        run(
            "--learning-rate", "1e30", "--warmup", 0, "--epochs", 40, "--variants", "dense,svd", "--format", "json"
        ).json["measured"]
        == 0
    )


def test_a_model_in_half_precision_is_trained_in_full_and_stored_in_half(
    run: Any, tiny_classifier: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_classifier, half)
    weights = load_file(half / "model.safetensors")
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()},
        half / "model.safetensors",
        {"format": "pt"},
    )
    assert run("--variants", "dense,projective", model=half).code == 0
    found = by_variant(tmp_path / "out")
    assert found["dense"]["bytes_stored"] == 2 * found["dense"]["params_dense"]
    assert found["projective"]["codes"] == "bfloat16"
    assert (
        found["projective"]["bytes_stored"]
        == 2 * found["projective"]["params_stored"] + found["dense"]["params_dense"] // 16
    )
    assert found["projective"]["score_after"] is not None


def test_a_config_file_sets_any_option_and_the_resolved_ones_make_it_again(run: Any, cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(
        "per-task:\n  - demo:warmup=0.5\nvariants: dense,projective\nwarmup: 0.3\nlearning-rate: 1.0e-3\n"
    )
    assert run("--config", config).code == 0
    (settings,) = {json.dumps(row["settings"]) for row in rows(tmp_path / "out")}
    assert json.loads(settings)["warmup"] == 0.5
    assert json.loads(settings)["learning_rate"] == 1e-2  # a flag of every run here
    options = tmp_path / "out" / "projclust_options.yaml"
    again = cli("glue-eval", "--config", options, "--format", "json")
    assert again.code == 0, again
    assert again.json["measured"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "colla"), "there is no task 'colla'"),
        (("--tasks", "cola", "--glue-dir", "absent"), "there is no folder absent"),
        (("--variants", "svdd"), "there is no variant 'svdd'"),
        (("--variants", "projective:k=99999"), "k=99999 subspaces need at least as many rows"),
        (("--k", 3, "--j", 16), "the rank j=16"),
        (("--ratio", 0.4), "give exactly one of --j, --ratio, --bits and --size"),
        (("--seeds", "0,x"), "--seeds"),
        (("--seeds", "-1"), "--seeds"),
        (("--epochs", -1), "--epochs must be at least 0"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--batch-size", 33, "--gradient-accumulation", 2), "--batch-size 33"),
        (("--learning-rate", 0), "--learning-rate"),
        (("--limit", 0), "--limit"),
        (("--max-length", 100), "takes at most 64 tokens"),
        (("--baseline-epochs", 0), "holds no classifier for demo: --baseline-epochs 0 trains none"),
        (("--per-task", "demo:epoch=3"), "--per-task"),
        (("--weights", "zipf"), "--weights must be"),
        (("--weights", "counts:absent.txt"), "cannot read the counts file absent.txt"),
        pytest.param(
            ("--device", "cuda"),
            "--device cuda: this torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (("--protocol", "papier"), "papier"),
        (("--mixed-precision", "fp64"), "fp64"),
    ],
)
def test_mistakes_are_one_line(run: Any, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert len(outcome.err.strip().split("\n")) == 1, outcome.err
    assert message in outcome.err
    assert not list(tmp_path.rglob("*.json"))


def test_folders_that_cannot_be_used(run: Any, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "was not written by projclust" in run(out="mine").err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("a file")
    assert "exists and is not a folder" in run(out="file").err
    assert run(out="no/such").code == 0  # its parent is made
    foreign = cli("glue-eval", tmp_path / "mine", "--tasks", "demo", "-o", tmp_path / "out")
    assert (foreign.code, foreign.err.count("\n")) == (2, 1)


def test_a_tokenizer_that_is_not_the_models_is_refused(run: Any, tiny_classifier: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    tiny_model("bert").save_pretrained(foreign)  # 120 rows
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_classifier / name, foreign / name)
    outcome = run(model=foreign)
    assert outcome.code == 2
    assert "but its embedding has 120 rows" in outcome.err


def test_the_recipes_name_options_tasks_and_variants_that_exist() -> None:
    folder = Path(__file__).parents[2] / "configs"
    recipes = sorted(folder.glob("*.yaml"))
    assert len(recipes) == 7
    known = set(flat(GlueEvalOptions))
    for recipe in recipes:
        content = {name.replace("-", "_"): value for name, value in yaml.safe_load(recipe.read_text()).items()}
        assert set(content) <= known
        per_task = parse_per_task(tuple(content.get("per_task", ())))
        for task in parse_tasks(content["tasks"]):
            settings_for(task, Settings(learning_rate=content["learning_rate"]), per_task)
        shape = (50265, 768) if recipe.stem == "roberta_paper" else (30522, 384 if "minilm" in recipe.stem else 768)
        base, table = Recipe(ratio=content.get("ratio", 0.4)), DenseShape(*shape)
        variants = parse_variants(content.get("variants", "dense"), base, table)
        assert variants[0].name == "dense"
        for own in [variant.recipe for variant in variants if variant.recipe is not None]:
            if own.k is not None:
                assert shape_of(own, table).compression_rate >= 0.4


def test_the_papers_sizes() -> None:
    """The ranks the paper's settings come to on its own tables."""
    names = "projective:k=1,projective:k=2,projective:k=4,projective:k=5"
    distilbert = parse_variants(names, Recipe(ratio=0.4), DenseShape(30522, 768))
    assert [variant.recipe and variant.recipe.j for variant in distilbert] == [449, 438, 418, 409]
    roberta = parse_variants("projective:k=1,projective:k=5", Recipe(ratio=0.43), DenseShape(50265, 768))
    assert [variant.recipe and variant.recipe.j for variant in roberta] == [431, 406]


def test_a_damaged_cell_is_named(run: Any, tmp_path: Path) -> None:
    assert run("--variants", "dense").code == 0
    (cell,) = (tmp_path / "out" / "cells").glob("*.json")
    cell.write_text(cell.read_text()[:100])
    outcome = run("--variants", "dense")
    assert outcome.code == 2
    assert cell.name in outcome.err
    assert "delete it" in outcome.err
    cell.unlink()
    assert run("--variants", "dense", "--format", "json").json["measured"] == 1


def test_a_damaged_dense_model_is_named(run: Any, tmp_path: Path) -> None:
    assert run("--variants", "dense").code == 0
    (tuned,) = (tmp_path / "out" / "models").iterdir()
    for name in ("baseline.json", "model.safetensors"):
        (tuned / name).rename(tmp_path / name)
        outcome = run("--variants", "svd")
        assert outcome.code == 2
        assert f"{tuned.name} is damaged: delete it" in outcome.err
        (tmp_path / name).rename(tuned / name)
    assert run("--variants", "svd").code == 0


@pytest.mark.parametrize("part", ["encoder.layer.0.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_a_model_that_lacks_weights_is_not_measured(run: Any, tiny_classifier: Path, tmp_path: Path, part: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_classifier, broken)
    weights = load_file(broken / "model.safetensors")
    del weights[part]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    outcome = run("--variants", "dense", model=broken)
    assert outcome.code == 2
    assert "holds no weights for" in outcome.err


def test_a_model_without_a_tokenizer_is_not_measured(run: Any, tiny_classifier: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_classifier / name, bare / name)
    outcome = run(model=bare)
    assert outcome.code == 2
    assert "has no tokenizer" in outcome.err
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_variant_written_in_two_ways_is_measured_once(run: Any, tmp_path: Path) -> None:
    both = run("--variants", "dense,projective,projective:k=3:j=6", "--format", "json")
    assert both.json["measured"] == 2
    again = run("--variants", "projective:k=3:j=6", "--format", "json")
    assert again.json["measured"] == 0
    assert "warning" not in again.err
    assert len(rows(tmp_path / "out")) == 2


def test_what_best_needed_serves_without_it(run: Any, tmp_path: Path) -> None:
    assert run("--variants", "dense,projective,best", "--format", "json").json["measured"] == 2
    assert run("--variants", "dense,projective", "--format", "json").json["measured"] == 0
    other = run("--variants", "projective", "--k", 2, "--format", "json")
    assert other.json["measured"] == 1
    assert run("--variants", "dense,best", "--epochs", 0).code == 2


def write_task(folder: Path, task: str, columns: tuple[str, str], label: int) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        texts = [f"the {word} was good" for word in ("soup", "tent", "piano", "saw", "flask", "tram")]
        table = {columns[0]: texts, columns[1]: texts, "label": [label, 0, 1, 0, 1, 1]}
        pq.write_table(pa.table(table), folder / task / f"{split}-00000-of-00001.parquet")


def test_data_that_move_or_change_between_runs(run: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for task in ("rte", "mrpc"):
        write_task(first, task, ("sentence1", "sentence2"), 0)
    dense = ("--variants", "dense", "--glue-dir")
    assert run(*dense, first, "--tasks", "rte").code == 0
    first.rename(second)
    moved = run(*dense, second, "--tasks", "rte", "--seeds", "0,1", "--format", "json")
    assert (moved.code, moved.json["measured"]) == (0, 1)
    write_task(second, "rte", ("sentence1", "sentence2"), 1)
    assert run(*dense, second, "--tasks", "rte", "--seeds", "0").code == 0
    outcome = run(*dense, second, "--tasks", "mrpc")
    assert outcome.code == 0, outcome
    assert "warning: 2 cells in" in outcome.err  # of the rows as they were
    assert [(row["task"], row["seed"]) for row in rows(tmp_path / "out")] == [("mrpc", 0), ("rte", 0)]


def test_the_models_own_folder_is_no_output(run: Any, cli: Cli, tiny_classifier: Path, tmp_path: Path) -> None:
    compressed = tmp_path / "compressed"
    assert cli("compress", tiny_classifier, "--k", 2, "--j", 4, "-o", compressed).code == 0
    before = snapshot(compressed)
    for out in (compressed, compressed / "results"):
        outcome = cli("glue-eval", compressed, "--tasks", "demo", "-o", out)
        assert outcome.code == 2
        assert "the model's own folder" in outcome.err
    assert cli("glue-eval", tiny_classifier, "--tasks", "demo", "-o", compressed).code == 2
    assert snapshot(compressed) == before


def test_a_flag_wins_over_the_tasks_settings_in_a_config_file(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("per-task:\n  - demo:limit=20:warmup=0.5\n")
    assert run("--variants", "dense", "--config", config).code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["limit"], row["settings"]["warmup"]) == (64, 0.5)  # --limit is among the flags of every run here
    assert run("--variants", "dense", "--per-task", "demo:limit=20", out="other").code == 0
    assert rows(tmp_path / "other")[0]["limit"] == 20


def test_scores_are_finite_json(run: Any, tmp_path: Path) -> None:
    assert run("--variants", "svd").code == 0
    text = (tmp_path / "out" / "results.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert math.isfinite(rows(tmp_path / "out")[0]["score_after"])


def test_coded_variants_and_baselines_are_measured_at_their_stored_size(run: Any, tmp_path: Path) -> None:
    variants = "dense,projective:bits=8,projective:bits=9:codes=int8,int4,pq:bits=6"
    outcome = run("--variants", variants, "--weights", "uniform")
    assert outcome.code == 0, outcome
    found = by_variant(tmp_path / "out")
    dense = found["dense"]
    n_weights = dense["params_dense"]
    for name, bits in (("projective:bits=8", 8), ("projective:bits=9:codes=int8", 9), ("pq:bits=6", 6)):
        assert 0.8 * bits < found[name]["bits_per_weight"] <= bits, name
        assert found[name]["bytes_stored"] == found[name]["bits_per_weight"] * n_weights / 8
    assert found["int4"]["bytes_stored"] < dense["bytes_stored"] / 6
    for row in found.values():
        assert row["status"] == "done"
        assert row["score_after"] is not None
        assert row["model_bytes_stored"] == dense["model_bytes_stored"] - dense["bytes_stored"] + row["bytes_stored"]
    auto = found["projective:bits=8"]
    assert (auto["codes"], auto["bits"], auto["metric"], auto["weights"]) == ("auto", 8, "model", "uniform")
    assert 0 < auto["relative_error"] < 0.1
    report = (tmp_path / "out" / "report.md").read_text()
    assert "auto, 8 bits" in report
    assert "projective:bits=8" in report  # in the command that measures it again
