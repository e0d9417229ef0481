"""What of a folder is published in other words than it has here: paths of this machine are no one else's business."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from projclust.checkpoints.card import CARD_FILE, is_sentence_encoder, with_graphs
from projclust.checkpoints.folder import OPTIONS_FILE
from projclust.checkpoints.graphs import stored_graphs
from projclust.checkpoints.source import CONFIG, REPORT_FILE, read_json
from projclust.checkpoints.tensors import has_weights
from projclust.errors import CheckpointError
from projclust.weights.names import recorded

# Options and fields of reports that name a model, which may be one on the Hub, or a file or folder.
_MODELS, _PATHS = ("model", "path"), ("output", "glue-dir")


def published(folder: Path, name: str) -> bytes | None:
    """What of a folder is published in other words than it has here; None where it is published as it is.

    That is the options and the report, with the last parts of paths only, and the card of weights with graphs beside.

    Raises:
        CheckpointError: the file, a graph or config.json is damaged.
    """
    if name == CARD_FILE:
        return _card(folder)
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


def _card(folder: Path) -> bytes | None:
    """The card with the graphs that lie beside the weights; that of graphs alone tells of them as it is."""
    graphs = stored_graphs(folder)
    if not graphs or not has_weights(folder):
        return None
    try:
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{folder / CARD_FILE} is damaged: it is not UTF-8 text") from None
    kinds = read_json(folder / CONFIG).get("architectures")
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    return with_graphs(card, kind, graphs, is_sentence_encoder(folder)).encode()


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
