"""What of a folder is published in other words than it has here: paths of this machine are no one else's business."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from projclust.checkpoints.folder import OPTIONS_FILE
from projclust.checkpoints.source import REPORT_FILE, read_json
from projclust.errors import CheckpointError
from projclust.weights.names import recorded

# Options and fields of reports that name a model, which may be one on the Hub, or a file or folder.
_MODELS, _PATHS = ("model", "path"), ("output", "glue-dir")


def published(folder: Path, name: str) -> bytes | None:
    """The content of the options or the report of a folder with the last parts of paths only; None of other files.

    Raises:
        CheckpointError: the file is damaged.
    """
    if name == REPORT_FILE:
        return (json.dumps(_without_paths(read_json(folder / name)), indent=2) + "\n").encode()
    if name != OPTIONS_FILE:
        return None
    try:
        options = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise CheckpointError(f"{folder / name} is damaged: it holds no options")
    return yaml.safe_dump(_without_paths(options), sort_keys=False).encode()


def _without_paths(fields: dict[str, Any]) -> dict[str, Any]:
    fields, shortened = dict(fields), {}
    for field in fields.keys() & {*_MODELS, *_PATHS}:
        value = fields[field]
        if isinstance(value, str) and (field in _PATHS or is_local(value)):
            name = Path(value).resolve().name if Path(value).exists() else Path(value).name
            fields[field] = shortened[value] = name
    if isinstance(fields.get("weights"), str):
        fields["weights"] = recorded(fields["weights"])
    for field, value in fields.items():  # what a sentence says of them, such as why rows weigh the same
        for path, name in shortened.items():
            if isinstance(value, str) and os.sep in path:
                value = fields[field] = value.replace(path, name)
    return fields


def is_local(model: str) -> bool:
    """Whether a model's name is a path, and not one on the Hub."""
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
