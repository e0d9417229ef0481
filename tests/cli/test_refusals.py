"""What is refused before rows are weighed, before torch is imported, or before a model is built that never ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Cli

from projclust import OptionError, ProjclustError, ServiceError
from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.load import load_checkpoint
from projclust.checkpoints.source import resolve_checkpoint
from projclust.errors import is_out_of_reach
from projclust.shapes import parse_size
from projclust.tables import CodedLMHead

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "1"), "too few"),
        (("--bits", "0.1"), "too few"),
        (("--bits", "0.1", "--weights", "tokenizer"), "too few"),
        (("--size", "1GB"), "too many"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_words_are_counted(
    refused: Refused,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("projclust.jobs.compress.choose_weights", lambda *_: pytest.fail("words were counted"))
    assert message in refused("compress", tiny_folder, *arguments, "-o", tmp_path / "out")


WITHOUT_TORCH = """
import sys
from projclust.cli.app import run
code = run(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "3", "--weights-exponent", "-1"), "--weights-exponent must be a number greater than 0, not -1"),
        (("--bits", "3", "--weights-exponent", "1e308"), "--weights-exponent must be at most 100, not 1e+308"),
        (("--bits", "3", "--weights-exponent", "nan"), "--weights-exponent must be a number greater than 0"),
        (("--size", "٤٠٠KB"), "--size takes bytes as 400KB"),
        (("--config", "list.yaml"), "sets --output to ['a'], which it cannot be"),
        (("--config", "true.yaml"), "sets --k to True, which it cannot be"),
    ],
)
def test_options_that_cannot_be_are_refused_before_torch_is_imported(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "list.yaml").write_text("output: [a]\nbits: 3\n")
    (tmp_path / "true.yaml").write_text("k: true\nj: 3\n")
    command = [sys.executable, "-c", WITHOUT_TORCH, "compress", "some/model", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_digits_are_those_of_ascii() -> None:
    assert parse_size("400KB") == 400_000
    for text in ("٤٠٠KB", "４００", "4०0"):
        with pytest.raises(OptionError, match="takes bytes as 400KB"):
            parse_size(text)


def in_a_process(model: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from projclust.cli import main; main()", "inspect", model]
    own = {**os.environ, **environment}
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False, env=own)


def test_a_hub_that_does_not_answer_is_a_failure_and_no_mistake(tmp_path: Path) -> None:
    result = in_a_process(
        "a/b", HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path)
    )
    message = "error: a/b is no local folder, and the Hub cannot be reached to look for it there\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", message)


def test_who_wants_no_hub_gets_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = ValueError("damaged")
    silent.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert not is_out_of_reach(silent)
    with pytest.raises(ProjclustError, match="the Hub cannot be reached") as caught:
        resolve_checkpoint("projclust-tests/absent")
    assert not isinstance(caught.value, ServiceError)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    assert is_out_of_reach(silent)
    assert not is_out_of_reach(ValueError("damaged"))


def change(folder: Path, **fields: object) -> None:
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "quux"}, "names the model_type 'quux', which is none of transformers"),
        ({"model_type": "quux", "architectures": None}, "names the model_type 'quux'"),
        ({"model_type": 3}, "names the model_type '3'"),
    ],
)
def test_a_config_of_no_known_model_type_is_refused_by_name(
    refused: Refused, tiny_folder: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    change(tiny_folder, **fields)
    assert message in refused("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out")
    assert message in refused("inspect", tiny_folder)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 10**6}, {"text_config": {"num_local_experts": 10**7}}])
@pytest.mark.timeout(60)
def test_a_million_layers_are_refused_before_they_are_built(
    refused: Refused, tiny_folder: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    change(tiny_folder, **fields)
    for command in (("compress", tiny_folder, "--j", 5, "-o", tmp_path / "out"), ("inspect", tiny_folder)):
        assert "tensors are stored" in refused(*command)
    for load in (load_checkpoint, lambda folder: load_classifier(folder, ("a", "b"))):
        with pytest.raises(ProjclustError, match="tensors are stored"):
            load(tiny_folder)


def test_a_model_that_answers_otherwise_is_refused_unless_the_check_is_left_out(
    cli: Cli, refused: Refused, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CodedLMHead.forward
    monkeypatch.setattr(CodedLMHead, "forward", lambda self, hidden: -forward(self, hidden))
    arguments = ("compress", tiny_folder, "--codes", "int8", "-k", "2", "-j", "6", "-o", tmp_path / "out")
    assert "`projclust compress --no-twin-check`" in refused(*arguments)
    assert cli(*arguments, "--no-twin-check").code == 0
    assert "twin-check: false" in (tmp_path / "out" / "projclust_options.yaml").read_text()
