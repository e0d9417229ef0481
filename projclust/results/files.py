"""Files that are replaced whole or not at all."""

import contextlib
import os
from pathlib import Path

from projclust.errors import ProjclustError

# A fixed name, so that what a killed run leaves is overwritten by the next one.
PARTIAL = ".partial"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there: readers see the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ProjclustError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
