import os
import stat
from pathlib import Path

import pytest

from projclust import ProjclustError
from projclust.hf import folder as folder_module
from projclust.hf.folder import OPTIONS_FILE, check_space, check_target, new_folder


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
    with pytest.raises(ProjclustError, match="does not exist"):
        check_target(tmp_path / "absent" / "out", overwrite=False)
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
    # What such a kill leaves: the old folder under a hidden name, the new one complete but not in place.
    written(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.replaced-abcdef_1")
    (tmp_path / ".out.partial-abcdef_1").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "out", overwrite=True):
        raise KeyError
    assert (tmp_path / "out" / OPTIONS_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_second_step_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "out", "old")
    monkeypatch.setattr(folder_module, "_exchange", lambda first, second: False)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(ProjclustError, match="Input/output error; choose another --output"):
        written(tmp_path / "out", "new")
    assert (tmp_path / "out" / OPTIONS_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_too_long_for_the_folder_beside_it_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ProjclustError, match="too long"):
        check_target(tmp_path / ("x" * 245), overwrite=False)
