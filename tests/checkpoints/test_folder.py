import errno
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from projclust import ProjclustError
from projclust.checkpoints import folder as folder_module
from projclust.checkpoints.folder import (
    OPTIONS_FILE,
    check_space,
    check_target,
    locked,
    made,
    new_folder,
    write_options,
)
from projclust.options import Codes, Options, argument, nested, option


def written(target: Path, text: str = "new") -> None:
    with new_folder(target, overwrite=True) as staging:
        (staging / OPTIONS_FILE).write_text(text)
        (staging / "1_Pooling").mkdir()
        (staging / "1_Pooling" / "config.json").write_text(text)


def test_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target, overwrite=True) as staging:
        (staging / "file").write_text("x")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((target / "file").stat().st_mode) == 0o666 & ~mask


def test_an_error_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyError), new_folder(target, overwrite=True) as staging:
        (staging / "file").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    written(target, "old")
    with (
        pytest.raises(ProjclustError, match="cannot write .*: No space left"),
        new_folder(target, overwrite=True) as staging,
    ):
        raise OSError(28, "No space left on device")
    assert (target / "1_Pooling" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_replaces_a_folder(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:  # the way of systems that cannot swap two folders in one step
        monkeypatch.setattr(folder_module, "_exchange", lambda first, second: False)
    written(tmp_path / "out", "old")
    (tmp_path / "out" / "vocab.txt").write_text("of the old folder")
    written(tmp_path / "out", "new")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "new"
    assert not (tmp_path / "out" / "vocab.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_clears_what_killed_runs_left_but_nothing_of_running_ones(tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.partial-abcdef_1"
    (abandoned / "sub").mkdir(parents=True)
    others = [tmp_path / name for name in (".other.partial-abcdef_1", ".out.partial-notes", "xout.partial-abcdef_1")]
    for other in others:
        other.mkdir()
    with new_folder(tmp_path / "out", overwrite=True) as running:
        assert not abandoned.exists()
        written(tmp_path / "out")  # a second run of the same command, beside the first
        assert running.exists()
        (running / OPTIONS_FILE).write_text("last")
    assert (tmp_path / "out" / OPTIONS_FILE).read_text() == "last"
    assert all(other.exists() for other in others)


def test_checks_the_target_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "out"
    check_target(target, overwrite=False)
    target.mkdir()
    with pytest.raises(ProjclustError, match="exists: choose another --output or pass --overwrite"):
        check_target(target, overwrite=False)
    (target / "precious.txt").write_text("mine")
    with pytest.raises(ProjclustError, match="was not written by projclust"):
        check_target(target, overwrite=True)
    (target / OPTIONS_FILE).write_text("")
    with pytest.raises(ProjclustError, match="holds precious.txt, which projclust did not write"):
        check_target(target, overwrite=True)
    (target / "precious.txt").rename(tmp_path / "precious.txt")
    check_target(target, overwrite=True)
    check_target(tmp_path / "absent" / "deeper" / "out", overwrite=False)
    assert not (tmp_path / "absent").exists()
    with pytest.raises(ProjclustError, match=r"precious\.txt is not a folder"):
        check_target(tmp_path / "precious.txt" / "deeper" / "out", overwrite=False)
    with pytest.raises(ProjclustError, match="is not a folder"):
        check_target(tmp_path / "precious.txt", overwrite=True)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ProjclustError, match="is not a folder"):
        check_target(tmp_path / "link", overwrite=True)


def test_refuses_an_output_that_overlaps_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "models" / "bert"
    source.mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "models")
    monkeypatch.chdir(source)
    targets = (source, source / "new", source.parent, tmp_path / "alias" / "bert", Path(), Path(".."), Path("../bert"))
    for target in targets:
        with pytest.raises(ProjclustError, match="overlap"):
            check_target(target, overwrite=True, source=source)
    check_target(source.parent / "bert-projclust", overwrite=False, source=source)


def test_refuses_to_start_what_the_disk_cannot_hold(tmp_path: Path) -> None:
    check_space(tmp_path / "out", 1)
    with pytest.raises(ProjclustError, match="MB free"):
        check_space(tmp_path / "out", 2**62)


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for overwrite in (False, True):
        with pytest.raises(ProjclustError), new_folder(target, overwrite) as staging:
            (staging / OPTIONS_FILE).write_text("ours")
            target.mkdir(exist_ok=True)
            (target / "thesis.txt").write_text("mine")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [path.name for path in target.iterdir()] == ["thesis.txt"]


def test_a_kill_between_the_two_steps_of_a_system_without_exchange(tmp_path: Path) -> None:
    # What such a kill leaves: the old folder in the room, the new one complete but not in place.
    written(tmp_path / "out", "old")
    (tmp_path / ".out.partial-abcdef_1" / "new").mkdir(parents=True)
    (tmp_path / "out").rename(tmp_path / ".out.partial-abcdef_1" / "old")
    with pytest.raises(KeyError), new_folder(tmp_path / "out", overwrite=True):
        raise KeyError
    assert (tmp_path / "out" / OPTIONS_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_second_step_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "out", "old")
    monkeypatch.setattr(folder_module, "_exchange", lambda first, second: False)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(ProjclustError, match="Input/output error; choose another --output"):
        written(tmp_path / "out", "new")
    assert (tmp_path / "out" / OPTIONS_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_too_long_are_refused_at_once(tmp_path: Path) -> None:
    # The output's own, for a longer one is needed beside it; and one of a parent that is yet to be made.
    for target in (tmp_path / ("x" * 245), tmp_path / "absent" / ("x" * 300) / "out"):
        with pytest.raises(ProjclustError, match="too long"):
            check_target(target, overwrite=False)


def test_a_parent_that_may_not_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(ProjclustError, match="is not writable"):
        check_target(tmp_path / "absent" / "out", overwrite=False)


def test_missing_parents_are_made_and_removed_again_when_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with pytest.raises(KeyError), new_folder(target, overwrite=False) as staging:
        (staging / "file").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    check_space(target, 1)
    written(target)
    assert (target / OPTIONS_FILE).read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "kept" / "out", overwrite=False):
        raise KeyError
    assert (tmp_path / "kept").exists()


def test_a_folder_that_is_made_is_removed_unless_something_is_put_there(tmp_path: Path) -> None:
    with made(tmp_path / "a" / "b") as folder:
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    with made(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
    assert (folder / "file").exists()


def test_options_are_written_as_they_are_read(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Fit(Options):
        max_iter: int = option(100, "Steps.")

    @dataclass(frozen=True)
    class Job(Options):
        model: str = argument("A model.", "MODEL")
        codes: Codes | None = option(Codes.INT8, "Codes.")
        size: str | None = option(None, "A size.")
        fit: Fit = nested(Fit())

    write_options(tmp_path, Job("bert"))
    assert yaml.safe_load((tmp_path / OPTIONS_FILE).read_text()) == {"model": "bert", "codes": "int8", "max-iter": 100}


def test_the_lock_of_a_folder_keeps_others_out_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    with locked(folder):
        assert list(folder.iterdir()) == []
        with pytest.raises(ProjclustError, match="another run is writing to"), locked(folder):
            pass
    with locked(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


LOCKED = """
import sys, time, projclust.checkpoints.folder as f
from pathlib import Path
with f.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(1000)
"""


def test_a_killed_process_leaves_no_folder_locked(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", LOCKED, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ProjclustError, match="another run"), locked(folder):
        pass
    process.kill()
    process.communicate()
    with locked(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_where_locks_do_not_work_the_work_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(self: FileLock, **options: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    abandoned = tmp_path / ".out.partial-abcdef_1"
    abandoned.mkdir()
    with locked(tmp_path):
        written(tmp_path / "out")
    assert (tmp_path / "out" / OPTIONS_FILE).read_text() == "new"
    assert abandoned.exists(), "it may be another run's"


# Each time it has the lock it is alone; each time it writes the folder it succeeds.
RACING = """
import sys, projclust.checkpoints.folder as f
from pathlib import Path
from projclust import ProjclustError
root, entered = Path(sys.argv[1]), 0
for _ in range(150):
    try:
        with f.locked(root / "results"):
            (root / "results" / "alone").touch(exist_ok=False)
            (root / "results" / "alone").unlink()
            entered += 1
    except ProjclustError as error:
        assert "another run" in str(error), error
for _ in range(40):
    with f.new_folder(root / "deep" / "out", overwrite=True) as new:
        (new / f.OPTIONS_FILE).write_text("whole")
print("entered" if entered else "never")
"""


def test_processes_that_race_exclude_each_other_and_clean_up(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    command = [sys.executable, "-c", RACING, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["entered\n"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "results"]
    assert list((tmp_path / "results").iterdir()) == []
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / OPTIONS_FILE).read_text() == "whole"
