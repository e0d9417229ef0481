"""Finished measurements on disk: one file a cell, written whole or not at all."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from projclust.checkpoints.source import read_json
from projclust.errors import ProjclustError
from projclust.results.identity import identity_hash as identity_hash
from projclust.results.rows import Row, parse_row


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
            return parse_row(read_json(path), str(path)) if path.exists() else None
        except ProjclustError as error:
            raise ProjclustError(f"{error}: delete it to have it measured again") from None

    def write(self, row: Row) -> None:
        """Keep a finished cell, so that neither a kill nor a crash of the system leaves half of it."""
        path = self.path(row.task, row.label, row.seed, row.settings_hash)
        unfinished = path.with_name(f".{path.name}.partial")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(row.as_json(), indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def all(self) -> list[Row]:
        """Read every finished cell, also those of other settings, the newest first."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: (-path.stat().st_mtime_ns, path.name))
        return [row for path in paths if (row := self.read(path)) is not None]
