"""Output folders that appear whole or not at all."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from projclust.checkpoints.source import CONFIG, check_name, is_side_file
from projclust.errors import ProjclustError
from projclust.options import Options

# Every folder projclust writes holds this file; only such a folder is ever replaced.
OPTIONS_FILE = "projclust_options.yaml"

# Card, report, plot, options and tokenizer: a generous allowance when asking whether the disk has room.
_SMALL_FILES = 16 * 2**20

_OWN_FILES = re.compile(
    r"projclust_\w+\.(json|yaml|png)|README\.md|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|onnx/model\w*\.onnx"
)

# What a room beside an output folder holds, see `new_folder`.
_LOCK, _NEW, _OLD = "lock", "new", "old"


def check_target(target: Path, overwrite: bool, source: Path | None = None) -> None:
    """Refuse an output folder that must not or cannot be written, or overlaps `source`, before any work is done."""
    check_target_name(target)
    try:
        if source is not None:
            new, old = target.resolve(), source.resolve()
            if new == old or new in old.parents or old in new.parents:
                raise ProjclustError(f"the output {target} and the model's own folder overlap: choose another --output")
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise ProjclustError(f"the output {target} exists and is not a folder: choose another --output")
        if target.exists():
            if not overwrite:
                raise ProjclustError(f"the output folder {target} exists: choose another --output or pass --overwrite")
            _refuse_foreign(target)
        parent = target.absolute().parent
        existing = _existing(parent)
        if not existing.is_dir():
            raise ProjclustError(f"{existing} is not a folder: choose another --output")
        for name in (*parent.relative_to(existing).parts, f".{target.name}.partial-12345678"):
            with contextlib.suppress(FileNotFoundError):
                (existing / name).lstat()  # whether a name is too long
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ProjclustError(f"the folder {existing} is not writable: choose another --output")
    except OSError as error:  # a name too long, a folder that may not be listed
        raise ProjclustError(f"cannot use {target} as the output: {_reason(error)}") from None


def check_target_name(target: Path) -> None:
    """Refuse an output folder by its name alone: one that cannot be, or leads in a circle."""
    check_name(target)
    try:
        target.resolve()
    except (OSError, RuntimeError):
        raise ProjclustError(f"the links of {target} lead in a circle: choose another --output") from None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def _refuse_foreign(target: Path) -> None:
    paths = [path for path in target.rglob("*") if not path.is_dir() or path.is_symlink()]
    found = sorted(path.relative_to(target).as_posix() for path in paths)
    if found and OPTIONS_FILE not in found:
        raise ProjclustError(f"{target} was not written by projclust, so --overwrite will not replace it")
    for name in found:
        if not (name == CONFIG or _OWN_FILES.fullmatch(name) or is_side_file(name)):
            raise ProjclustError(
                f"{target} holds {name}, which projclust did not write: move it, or choose another --output"
            )
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir() and not path.is_symlink())):
        if not os.access(folder, os.W_OK | os.X_OK):  # what it holds could not be removed
            raise ProjclustError(f"{folder} is not writable, so --overwrite cannot replace it: choose another --output")


def write_options(folder: Path, options: Options) -> None:
    """Write the resolved options of a job; `--config` reads the file back."""
    fields = {name.replace("_", "-"): value for name, value in options.as_dict().items() if value is not None}
    (folder / OPTIONS_FILE).write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def check_space(target: Path, needed: int) -> None:
    """Refuse to start writing `needed` bytes of weights where they and the small files beside them do not fit."""
    needed += _SMALL_FILES
    place = _existing(target.absolute().parent)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ProjclustError(f"the output needs {needed / 1e6:.0f} MB, but {place} has {free / 1e6:.0f} MB free")


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder to fill; it takes the place of `target` when the block ends without an error.

    It lies beside `target`, in a room of its own that also holds the lock which tells a running process from a killed
    one: ``.NAME.partial-XXXXXXXX/{lock,new}``. A process killed at any moment leaves `target` as it was or complete;
    the room it leaves is removed by the next run. Where a system cannot exchange two folders in one step (Windows), a
    kill between its two steps leaves the old folder in the room, and the next run puts it back. After an error nothing
    is left behind.
    """
    try:
        with made(target.absolute().parent) as parent:
            _clean_up(target)
            room, lock = _take_room(parent, f".{target.name}.partial-")
            try:
                yield room / _NEW
                _settle(room / _NEW)
                _put_in_place(room, target, overwrite)
            finally:
                _remove(room, lock)
    except (OSError, SafetensorError) as error:
        raise cannot_write(target, error) from error


@contextlib.contextmanager
def made(folder: Path) -> Iterator[Path]:
    """Make a folder and its missing parents; those of them that hold nothing at the end of the block are removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


def cannot_write(target: Path, error: Exception) -> ProjclustError:
    """What to tell of a write that failed: why, and what to do."""
    way_out = "choose another --output"
    elsewhere = _elsewhere(target, error)
    if elsewhere is not None:
        return ProjclustError(f"cannot use {elsewhere}: {_reason(error)}")
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "os error 28" in str(error):  # how safetensors tells of a full disk
        way_out = f"free some space or {way_out}"
    elif isinstance(error, OSError) and error.filename:
        way_out += f" (at {error.filename})"
    return ProjclustError(f"cannot write {target}: {_reason(error)}; {way_out}")


def _elsewhere(target: Path, error: Exception) -> str | None:
    """The file that an error is about, where that is none of the output or beside it, such as one in a cache."""
    name = error.filename if isinstance(error, OSError) else None
    if not isinstance(name, (str, bytes)):
        return None
    path, place = os.path.abspath(os.fsdecode(name)), os.path.abspath(target.parent)
    return None if os.path.commonpath([path, place]) in (path, place) else os.fsdecode(name)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _settle(folder: Path) -> None:
    """Give files and folders ordinary permissions and bring them to the disk before the rename does."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _synchronise(path)


def _synchronise(path: Path) -> None:
    if os.name == "posix" or path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(room: Path, target: Path, overwrite: bool) -> None:
    # Again, for the work has taken a while: what appeared there meanwhile is somebody's.
    check_target(target, overwrite)
    if not target.exists():
        (room / _NEW).rename(target)  # refused by the system if a folder with anything in it appears right now
    elif not _exchange(room / _NEW, target):
        target.rename(room / _OLD)
        try:
            (room / _NEW).rename(target)
        except OSError:
            (room / _OLD).rename(target)
            raise
    _synchronise(target.absolute().parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the system can."""
    names = os.fsencode(first), os.fsencode(second.absolute())
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        at_cwd, rename_exchange = -100, 2
        return bool(libc.renameat2(at_cwd, names[0], at_cwd, names[1], rename_exchange) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        rename_swap = 2
        return bool(libc.renamex_np(*names, rename_swap) == 0)
    return False


def _clean_up(target: Path) -> None:
    """Remove the rooms that killed runs left, and put back the old folder that one of them may hold."""
    # mkdtemp's random part, exactly: `.out.partial-notes` is somebody's.
    leftover = re.compile(re.escape(f".{target.name}.") + r"partial-[a-z0-9_]{8}")
    for room in sorted(target.absolute().parent.iterdir()):
        if not leftover.fullmatch(room.name) or not room.is_dir():
            continue
        with contextlib.suppress(OSError, NotImplementedError):  # a living process has it, or there are no locks
            lock = FileLock(room / _LOCK)
            lock.acquire(blocking=False)
            with contextlib.suppress(OSError):
                if not target.exists():
                    (room / _OLD).rename(target)
            _remove(room, lock)


def _take_room(parent: Path, prefix: str) -> tuple[Path, BaseFileLock]:
    """A new folder with an empty one in it, locked by this process until it ends, whatever ends it."""
    while True:
        parent.mkdir(parents=True, exist_ok=True)  # another run that failed may have removed it
        room = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = FileLock(room / _LOCK)
        try:
            _acquire(lock)
            (room / _NEW).mkdir()
        except (Timeout, FileNotFoundError):  # another run took it for abandoned before it was locked
            lock.release()
            continue
        except BaseException:  # Ctrl-C, say
            _remove(room, lock)
            raise
        return room, lock


def _remove(room: Path, lock: BaseFileLock) -> None:
    # While it is locked, so that nobody who waits for the lock gets one that is about to go.
    shutil.rmtree(room, ignore_errors=True)
    lock.release()
    with contextlib.suppress(OSError):
        room.rmdir()  # Windows keeps a file that is open, and with it the folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder from other processes that ask for its lock, until the block or this process ends.

    The lock is a hidden file beside the folder. A killed process leaves the file, which then locks nothing.
    """
    folder = folder.resolve()
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    try:
        _acquire(lock)
    except Timeout:
        raise ProjclustError(f"another run is writing to {folder}: wait for it or choose another --output") from None
    try:
        yield
    finally:
        # While it is locked: filelock, from 4.0 on, gives nobody a lock on a file that is gone and removes none itself.
        # Windows keeps the file while it is open; there filelock removes it.
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()


def _acquire(lock: BaseFileLock) -> None:
    """Take a lock at once, or raise Timeout where another process has it.

    Some network file systems know no locks, and some folders take no file; there, concurrent runs are not told apart.
    """
    try:
        lock.acquire(blocking=False)
    except (Timeout, FileNotFoundError):
        raise
    except (OSError, NotImplementedError):
        pass
