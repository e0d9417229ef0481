"""Stopped at any moment, by any of the usual signals, and with streams that take nothing: one line, and nothing left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import Cli, Outcome, snapshot

# Sends itself a signal when a module is first imported, or when a path with a part is first touched.
PROGRAM = """
import os, signal, sys
number, event, part = int(sys.argv[1]), sys.argv[2], sys.argv[3]
# Shells start what they run in the background with some signals ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sent = []
def watch(name, arguments):
    if not sent and name == event and part in str(arguments[0]):
        sent.append(1)
        os.kill(os.getpid(), number)
sys.addaudithook(watch)
sys.argv[1:] = sys.argv[4:]
from projclust.cli import main
main()
"""


def stopped(number: int, event: str, part: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", PROGRAM, str(int(number)), event, part, *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", ["projclust.cli.app", "torch", "projclust.jobs.compress"])
def test_ctrl_c_while_modules_are_imported(tiny_folder: Path, tmp_path: Path, module: str) -> None:
    before = snapshot(tmp_path)
    result = stopped(signal.SIGINT, "import", module, "compress", tiny_folder, "--j", 5, "-o", tmp_path / "out")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_while_the_output_is_written_leaves_nothing(tiny_folder: Path, tmp_path: Path, number: int) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = ("compress", tiny_folder, "--j", 5, "--restarts", 1, "-o", tmp_path / "deep" / "out")
    result = stopped(number, "open", "partial-", *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (128 + number, "", "error: interrupted\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hangup_that_whoever_started_it_had_ignored_stops_nothing(tiny_folder: Path) -> None:
    program = PROGRAM.replace("sent = []", "sent = []; signal.signal(signal.SIGHUP, signal.SIG_IGN)")  # as nohup does
    command = [sys.executable, "-c", program, str(int(signal.SIGHUP)), "import", "yaml", "inspect", str(tiny_folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def shell(line: str) -> tuple[int, str, str]:
    program = f"{sys.executable} -c 'from projclust.cli import main; main()' {line}"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, result.stdout, result.stderr


def test_a_stdout_that_takes_nothing_is_told(tiny_folder: Path) -> None:
    assert shell(f"inspect {tiny_folder} >&-") == (1, "", "error: stdout is closed: the result cannot be printed\n")
    if os.path.exists("/dev/full"):
        for options in ("", "--format json"):
            code, _, err = shell(f"inspect {tiny_folder} {options} >/dev/full")
            assert (code, err) == (1, "error: cannot print the result: No space left on device\n")
        assert shell(f"inspect {tiny_folder} >/dev/full 2>/dev/full")[0] == 1


def test_a_stderr_that_takes_nothing_loses_what_goes_there_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    code, out, _ = shell(f"inspect {tiny_folder} 2>&-")
    assert code == 0
    assert out.endswith("next: projclust compress " + str(tiny_folder) + " --bits 0.5\n")
    assert shell(f"inspect {tmp_path}/absent 2>&-") == (2, "", "")
    # The lowest free number is that of a closed stream: no file may get it.
    assert shell(f"compress {tiny_folder} --k 3 --j 5 -o {tmp_path}/out <&- >&- 2>&-")[0] == 1
    assert shell(f"inspect {tmp_path}/out")[0] == 0
    if os.path.exists("/dev/full"):
        assert shell(f"inspect {tmp_path}/absent 2>/dev/full") == (2, "", "")
        (tiny_folder / "vocab.txt").unlink()  # of which there is a warning
        code, out, _ = shell(f"compress {tiny_folder} --bits 8 --sensitivity none -o {tmp_path}/bits 2>/dev/full")
        assert code == 0
        assert f"next: projclust inspect {tmp_path}/bits\n" in out


def test_a_terminal_that_knows_few_letters_shows_the_rest_as_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    name = tmp_path / "größe"
    tiny_folder.rename(name)
    program = [sys.executable, "-c", "from projclust.cli import main; main()", "inspect", str(name)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert "gr\\xf6\\xdfe" in result.stdout


@pytest.mark.parametrize("stops", [True, False])
def test_of_many_processes_the_main_one_says_a_mistake(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    def launcher_stops_it(seconds: float) -> None:
        if stops:
            raise KeyboardInterrupt

    monkeypatch.setattr("projclust.cli.app.time.sleep", launcher_stops_it)
    wrong = ("compress", tiny_folder, "--j", "5", "--ratio", "0.5")
    said = cli(*wrong)
    assert (said.code, said.err.count("error: ")) == (2, 1)
    monkeypatch.setenv("RANK", "1")
    assert cli(*wrong) == Outcome(2, "", "" if stops else said.err)  # its own mistake is said by itself


def test_of_many_processes_the_main_one_says_that_it_was_stopped(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, said in (("1", ""), ("0", "error: interrupted\n")):
        monkeypatch.setenv("RANK", rank)
        for module in ("projclust.cli.app", "projclust.jobs.compress"):
            result = stopped(
                signal.SIGTERM, "import", module, "compress", tiny_folder, "--j", 5, "-o", tmp_path / "out"
            )
            assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, said)
