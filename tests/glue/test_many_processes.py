"""Two processes under torchrun (gloo): the same scores, and the same training up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Scores an untrained classifier, trains it, scores it again; every process writes what it found.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from projclust.glue.batches import encode
from projclust.glue.settings import Settings
from projclust.glue.data import load_task
from projclust.glue.training import logits, make_accelerator, score, train
from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.load import load_tokenizer
from projclust.hf.compression import compress_model, unfreeze
folder, out, parts, coded = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
torch.set_num_threads(1)
settings = Settings(learning_rate=1e-2, gradient_accumulation=parts)
accelerator = make_accelerator(settings, cpu=True)
data = load_task("demo", None, limit=203)  # no multiple of anything
tokenizer = load_tokenizer(folder)
rows = encode(data.train, tokenizer, 32)
def compressed():
    torch.manual_seed(0)
    model = load_classifier(folder, data.task.labels).model
    return unfreeze(compress_model(model, bits=8, metric="none", weights="wordfreq")) if coded else compress_model(model, k=3, j=5, restarts=1)
model = compressed()
before = logits(model, tokenizer, rows, accelerator)
scores = score(data.task, model, tokenizer, {"": rows}, accelerator)
steps = []
train(model, tokenizer, rows, 8, 0, settings, accelerator, lambda *step: steps.append(step))
trained = score(data.task, model, tokenizer, {"": rows}, accelerator)
model = compressed()
untrained = model.get_input_embeddings().dense_weight().detach()
full = encode(load_task("demo", None, limit=6 * settings.batch_size).train, tokenizer, 32)
train(model, tokenizer, full, 8, 0, settings, accelerator)
weight = model.get_input_embeddings().dense_weight().detach()
result = {
    "processes": accelerator.num_processes, "rows": before.shape[0], "logits": before.double().sum(0).tolist(),
    "moved": float((weight - untrained).abs().max()), "scores": scores, "steps": steps[-1], "trained": trained, "weight": float(weight.double().square().sum()),
}
with open(f"{out}-{accelerator.process_index}.json", "w") as file:
    json.dump(result, file)
"""


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*(torchrun if processes > 1 else [sys.executable]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def outcome(
    processes: int, parts: int, tiny_classifier: Path, tmp_path: Path, coded: bool = False
) -> list[dict[str, Any]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = launch(processes, program, tiny_classifier, tmp_path / f"out-{processes}-{parts}", parts, coded)
    assert result.returncode == 0, result.stderr[-2000:]
    paths = [tmp_path / f"out-{processes}-{parts}-{index}.json" for index in range(processes)]
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("coded", [False, True])
def test_two_processes_score_and_train_as_one_does(coded: bool, tiny_classifier: Path, tmp_path: Path) -> None:
    (alone,) = outcome(1, 1, tiny_classifier, tmp_path, coded)
    first, second = outcome(2, 1, tiny_classifier, tmp_path, coded)
    assert (alone["processes"], first["processes"]) == (1, 2)
    assert first == second
    assert first["rows"] == 203
    assert first["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    assert first["logits"] == pytest.approx(alone["logits"], abs=1e-4)
    # The same number of steps on the same batches, so the same model but for the rows that fill the last batch.
    assert first["steps"][:2] == alone["steps"][:2] == [56, 56]
    # Codes of random rows do not learn: what stands around them learns less.
    assert alone["trained"]["accuracy"] > (0.6 if coded else 0.9)
    assert first["trained"]["accuracy"] == pytest.approx(alone["trained"]["accuracy"], abs=0.05)
    assert first["moved"] > 1e-3
    # Where every batch is full nothing differs but rounding.
    assert first["weight"] == pytest.approx(alone["weight"], rel=1e-3)


def test_accumulated_parts_in_two_processes(tiny_classifier: Path, tmp_path: Path) -> None:
    first, second = outcome(2, 2, tiny_classifier, tmp_path)
    assert first == second
    assert first["steps"][:2] == [56, 56]
    assert first["trained"]["accuracy"] > 0.9


def test_the_command_in_two_processes(tiny_classifier: Path, tmp_path: Path) -> None:
    arguments = ["glue-eval", tiny_classifier, "--tasks", "demo", "--seeds", 0, "--limit", 150, "--max-length", 32]
    arguments += ["--k", 3, "--j", 6, "--restarts", 1, "--learning-rate", "1e-2", "--format", "json"]
    together = launch(2, "-m", "projclust", *arguments, "-o", tmp_path / "two")
    assert together.returncode == 0, together.stderr[-2000:]
    assert json.loads(together.stdout)["measured"] == 3  # printed once
    alone = launch(1, "-m", "projclust", *arguments, "-o", tmp_path / "one")
    found = {name: json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("one", "two")}
    assert [row["processes"] for row in found["two"]] == [2, 2, 2]
    assert [row["settings_hash"] for row in found["two"]] == [row["settings_hash"] for row in found["one"]]
    for row in found["two"]:
        assert row["status"] == "done"
        assert row["bytes_stored"] > 0
    # What one process measured, two take for measured, and the other way round.
    again = launch(2, "-m", "projclust", *arguments, "-o", tmp_path / "one")
    assert json.loads(again.stdout)["measured"] == 0
    assert alone.returncode == 0

    mistake = launch(2, "-m", "projclust", *arguments, "--variants", "nothing", "-o", tmp_path / "three")
    assert mistake.returncode != 0
    assert mistake.stderr.count("error: there is no variant 'nothing'") == 1
