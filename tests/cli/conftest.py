from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Cli, Outcome, snapshot

from projclust.cli.app import run


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run projclust in this process."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake: one line, code 2, empty stdout, not a file changed."""
    monkeypatch.setattr("projclust.cli.output.PATIENCE", 3600.0)  # no stages, however slow the machine

    def call(*arguments: object) -> str:
        before = snapshot(tmp_path)
        outcome = cli(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        lines = outcome.err.strip().split("\n")
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("error: ")
        assert snapshot(tmp_path) == before
        return lines[0]

    return call
