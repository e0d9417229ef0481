"""Output folders that appear whole or not at all."""

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from projclust.errors import ProjclustError

# Every folder projclust writes holds this file; only such a folder is ever replaced.
OPTIONS_FILE = "projclust_options.yaml"


def check_target(target: Path, overwrite: bool, source: Path | None = None) -> None:
    """Refuse an output folder that must not or cannot be written, before any work is done.

    Raises:
        ProjclustError: it exists and `overwrite` is false; it exists and projclust did not write it; it is, holds or
            lies in the folder `source`; its parent does not exist or is not writable.
    """
    if source is not None:
        new, old = target.resolve(), source.resolve()
        if new == old or new in old.parents or old in new.parents:
            raise ProjclustError(f"the output {target} and the model's own folder overlap: choose another --output")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ProjclustError(f"the output {target} exists and is not a folder: choose another --output")
    if target.exists():
        if not overwrite:
            raise ProjclustError(f"the output folder {target} exists: choose another --output or pass --overwrite")
        if any(target.iterdir()) and not (target / OPTIONS_FILE).is_file():
            raise ProjclustError(f"{target} was not written by projclust, so --overwrite will not replace it")
    parent = target.absolute().parent
    if not parent.is_dir():
        raise ProjclustError(f"the folder {parent} for the output does not exist: create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ProjclustError(f"the folder {parent} is not writable: choose another --output")


def check_space(target: Path, needed: int) -> None:
    """Refuse to start writing `needed` bytes where they do not fit.

    Raises:
        ProjclustError: with both figures.
    """
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise ProjclustError(
            f"the output needs {needed / 1e6:.0f} MB, but {target.absolute().parent} has {free / 1e6:.0f} MB free"
        )


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to fill; it takes the place of `target` when the block ends without an error.

    A process killed at any moment leaves `target` as it was or complete (on systems that cannot exchange two folders in
    one step, Windows among them, replacing takes two). What it leaves beside it is removed by the next run.

    Raises:
        ProjclustError: a file cannot be written; nothing is left behind.
    """
    prefix = f".{target.name}.partial-"
    parent = target.absolute().parent
    _remove_abandoned(parent, prefix)
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with _locked(staging):
            yield staging
            _settle(staging)
            _put_in_place(staging, target)
    except (OSError, SafetensorError) as error:
        raise ProjclustError(f"cannot write {target}: {_reason(error)}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _settle(folder: Path) -> None:
    """Give files and folders ordinary permissions and bring them to the disk before the rename does."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if os.name == "posix" or path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _put_in_place(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        old = staging.with_name(staging.name + "-old")
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    if os.name == "posix":
        descriptor = os.open(target.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process whatever ends it."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems know no locks; the folder is then only cleaned up less well.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what killed runs left: unfinished folders that no living process has locked."""
    if os.name != "posix":
        return
    import fcntl

    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
