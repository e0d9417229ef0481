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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from projclust.errors import ProjclustError

from .checkpoint import CONFIG, is_side_file

# Every folder projclust writes holds this file; only such a folder is ever replaced.
OPTIONS_FILE = "projclust_options.yaml"

# Card, report, plot, options and tokenizer: a generous allowance when asking whether the disk has room.
_SMALL_FILES = 16 * 2**20

_OWN_FILES = re.compile(r"projclust_\w+\.(json|yaml|png)|README\.md|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def check_target(target: Path, overwrite: bool, source: Path | None = None) -> None:
    """Refuse an output folder that must not or cannot be written, before any work is done.

    Raises:
        ProjclustError: it exists and `overwrite` is false; it exists and holds what projclust did not write; it is,
            holds or lies in the folder `source`; its parent does not exist or is not writable.
    """
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
        with contextlib.suppress(FileNotFoundError):
            (parent / f".{target.name}.replaced-12345678").lstat()  # the longest name needed beside it
        if not parent.is_dir():
            raise ProjclustError(f"the folder {parent} for the output does not exist: create it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ProjclustError(f"the folder {parent} is not writable: choose another --output")
    except OSError as error:  # a name too long, a folder that may not be listed
        raise ProjclustError(f"cannot use {target} as the output: {_reason(error)}") from None


def _refuse_foreign(target: Path) -> None:
    """Refuse to replace a folder in which anything is not projclust's own."""
    found = [
        path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir() or path.is_symlink()
    ]
    if found and OPTIONS_FILE not in found:
        raise ProjclustError(f"{target} was not written by projclust, so --overwrite will not replace it")
    for name in sorted(found):
        if not (name == CONFIG or _OWN_FILES.fullmatch(name) or is_side_file(name)):
            raise ProjclustError(
                f"{target} holds {name}, which projclust did not write: move it, or choose another --output"
            )


def write_options(folder: Path, options: Any) -> None:
    """Write the resolved options of a job, a dataclass; `--config` reads the file back."""
    fields = {name.replace("_", "-"): value for name, value in asdict(options).items() if value is not None}
    (folder / OPTIONS_FILE).write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def check_space(target: Path, needed: int) -> None:
    """Refuse to start writing `needed` bytes of weights where they and the small files beside them do not fit.

    Raises:
        ProjclustError: with both figures.
    """
    needed += _SMALL_FILES
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise ProjclustError(
            f"the output needs {needed / 1e6:.0f} MB, but {target.absolute().parent} has {free / 1e6:.0f} MB free"
        )


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside `target` to fill; it takes the place of `target` when the block ends without an error.

    A process killed at any moment leaves `target` as it was or complete; what it leaves beside it is removed by the
    next run. Where a system cannot exchange two folders in one step (Windows), a kill between its two steps leaves the
    old folder under a hidden name, and the next run puts it back.

    Args:
        target: the folder to write.
        overwrite: replace a folder that projclust wrote; otherwise nothing may have appeared there meanwhile.

    Raises:
        ProjclustError: a file cannot be written, or `target` must not be replaced; nothing is left behind.
    """
    parent = target.absolute().parent
    staging = None
    try:
        with contextlib.ExitStack() as locks:
            # Under the parent's lock no other run takes a folder for abandoned that is only not locked yet.
            with locked(parent, wait=True):
                _clean_up(target)
                staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=parent))
                locks.enter_context(locked(staging, wait=False))
            yield staging
            _settle(staging)
            _put_in_place(staging, target, overwrite)
    except (OSError, SafetensorError) as error:
        raise cannot_write(target, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def cannot_write(target: Path, error: Exception) -> ProjclustError:
    """What to tell of a write that failed: why, and what to do."""
    return ProjclustError(f"cannot write {target}: {_reason(error)}; {_way_out(error)}")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _way_out(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "os error 28" in str(error):  # how safetensors tells of a full disk
        return "free some space or choose another --output"
    place = f" (at {error.filename})" if isinstance(error, OSError) and error.filename else ""
    return f"choose another --output{place}"


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


def _put_in_place(staging: Path, target: Path, overwrite: bool) -> None:
    # Again, for the work has taken a while: what appeared there meanwhile is somebody's.
    check_target(target, overwrite)
    if not target.exists():
        staging.rename(target)  # refused by the system if a folder with anything in it appears right now
    elif not _exchange(staging, target):
        old = staging.with_name(staging.name.replace(".partial-", ".replaced-"))
        target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
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
    """Remove what killed runs left: unfinished folders that no living process has locked."""
    # mkdtemp's random part, exactly: `.out.partial-notes` is somebody's.
    leftover = re.compile(re.escape(f".{target.name}.") + r"(partial|replaced)-[a-z0-9_]{8}")
    for folder in sorted(target.absolute().parent.iterdir()):
        if not leftover.fullmatch(folder.name) or not folder.is_dir():
            continue
        with contextlib.suppress(OSError), locked(folder, wait=False):
            if ".replaced-" in folder.name and not target.exists():
                folder.rename(target)
            else:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process whatever ends it.

    Raises:
        BlockingIOError: another process has it and `wait` is false.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # some network file systems know no locks; there, concurrent runs are not told apart
            pass
        yield
    finally:
        os.close(descriptor)
