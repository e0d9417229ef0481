"""Changing what a saved checkpoint states and holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def stated(folder: Path) -> dict[str, Any]:
    """What config.json says of the compressed table."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def state(folder: Path, **fields: Any) -> None:
    """Change what config.json says of the table; None takes a field out."""
    config = json.loads((folder / "config.json").read_text())
    fields = config["quantization_config"] | fields
    config["quantization_config"] = {name: value for name, value in fields.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def forget_digest(folder: Path) -> None:
    """As if the folder was written before there were digests: other bytes are not noticed by theirs."""
    state(folder, sha256=None)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
