"""Heads that do not name their labels, as `LABEL_0` and on."""

import json
from pathlib import Path

import pytest
import torch
from commandline import Cli
from safetensors.torch import load_file, save_file

from projclust.glue.label_order import better_order

NLI = ("entailment", "neutral", "contradiction")
TUNED = ("--baseline-epochs", 20, "--epochs", 0, "--learning-rate", 0.003)


def test_the_order_in_which_a_head_is_right_is_found() -> None:
    labels = torch.arange(300) % 3
    says = 2 - labels
    says[::5] = 1
    assert better_order(says, labels, NLI) == ("contradiction", "neutral", "entailment")
    assert better_order(labels, labels, NLI) is None
    cycle = (labels + 1) % 3  # the head's number 0 stands for contradiction, and so on
    assert better_order(cycle, labels, NLI) == ("contradiction", "entailment", "neutral")


def test_a_head_that_knows_nothing_is_as_good_in_every_order() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, generator=generator) < 0.7).long()
    assert better_order(torch.zeros(500, dtype=torch.long), labels, ("no", "yes")) is None
    for rows in (3, 20, 100, 500):
        guesses = torch.randint(2, (rows,), generator=generator)
        assert better_order(guesses, labels[:rows], ("no", "yes")) is None


def test_a_nameless_head_in_another_order_is_refused_and_a_named_one_scored_right(
    cli: Cli, tiny_classifier: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    run = ("glue-eval", "--tasks", "demo", "--seeds", 0, "--max-length", 32)
    trained = cli(*run, tiny_classifier, "--variants", "dense", *TUNED, "-o", tuned)
    assert trained.code == 0, trained
    (folder,) = (tuned / "models").iterdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_classifier / name).read_bytes())
    assert cli("compress", folder, "--bits", 4, "-o", tmp_path / "small").code == 0

    def score(name: str) -> float:
        outcome = cli(*run, tmp_path / "small", "--epochs", 0, "-o", tmp_path / name, "--format", "json")
        assert outcome.code == 0, outcome
        found = json.loads((tmp_path / name / "results.json").read_text())
        return float(found["rows"][0]["score_before"])

    right = score("right")
    assert right != 50
    _reverse(tmp_path / "small", None)
    refused = cli(*run, tmp_path / "small", "--epochs", 0, "-o", tmp_path / "refused")
    assert refused.code == 2
    assert "far better with its labels in the order positive, negative: name them so under id2label" in refused.err
    _reverse(tmp_path / "small", {"0": "POSITIVE", "1": "NEGATIVE"}, tensors=False)
    assert score("named") == pytest.approx(right)


def _reverse(folder: Path, names: dict[str, str] | None, *, tensors: bool = True) -> None:
    """Put a head's labels in the other order, with or without saying so."""
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    if names is not None:
        config |= {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    if tensors:
        stored = load_file(folder / "model.safetensors")
        heads = {name: tensor.flip(0) for name, tensor in stored.items() if name.startswith("classifier.")}
        save_file({**stored, **heads}, folder / "model.safetensors", {"format": "pt"})
