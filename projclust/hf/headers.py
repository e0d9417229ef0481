"""What safetensors files hold, from their headers alone."""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from projclust.errors import CheckpointError

_ITEM_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a header describes it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


def read_headers(files: list[Path]) -> dict[str, StoredTensor]:
    """Every tensor of the files, by name.

    Raises:
        CheckpointError: a file cannot be read or is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, safe_open is no mapping
                    view = opened.get_slice(name)
                    shape, dtype = tuple(view.get_shape()), str(view.get_dtype())
                    tensors[name] = StoredTensor(shape, dtype, math.prod(shape) * _ITEM_SIZES.get(dtype, 1))
        except Exception as error:  # safetensors has an error class of its own, and mapping may fail as well
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file} is not a readable safetensors file: {reason}") from None
    return tensors
