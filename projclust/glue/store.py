"""Finished measurements on disk: one file a cell, written whole or not at all."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projclust.errors import ProjclustError
from projclust.results.identity import identity_hash as identity_hash

Row = dict[str, Any]
"""One measurement, with the fields of docs/results.md."""


@dataclass(frozen=True)
class CellStore:
    """The folder of finished cells."""

    folder: Path

    def path(self, task: str, label: str, seed: int, settings_hash: str) -> Path:
        """Return where a cell is, or will be."""
        plain = re.sub(r"[^A-Za-z0-9=.]+", "-", label)
        return self.folder / f"{task}-{plain}-seed{seed}-{settings_hash[:12]}.json"

    def read(self, path: Path) -> Row | None:
        """Read a finished cell; None when it is not finished."""
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ProjclustError(f"{path} is damaged ({error}): delete it to have it measured again") from None
        if not (isinstance(row, dict) and {"task", "label", "seed", "settings_hash"} <= set(row)):
            raise ProjclustError(f"{path} is no finished cell: delete it to have it measured again")
        return row

    def write(self, row: Row) -> None:
        """Keep a finished cell, so that neither a kill nor a crash of the system leaves half of it."""
        path = self.path(row["task"], row["label"], row["seed"], row["settings_hash"])
        unfinished = path.with_name(f".{path.name}.partial")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(row, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def all(self) -> list[Row]:
        """Read every finished cell, also those of other settings, the newest first."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: (-path.stat().st_mtime_ns, path.name))
        return [row for path in paths if (row := self.read(path)) is not None]
