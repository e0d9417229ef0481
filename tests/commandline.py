"""Running the command line in a test's own process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines of stderr that are warnings and errors, and no progress."""
        return [line for line in self.err.splitlines() if line.startswith(("warning: ", "error: "))]

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object on stdout."""
        result = json.loads(self.out)
        assert isinstance(result, dict)
        return result


Cli = Callable[..., Outcome]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
