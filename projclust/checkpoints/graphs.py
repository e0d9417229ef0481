"""The ONNX files of a folder, by what stands around their graphs: neither onnx nor a runtime is needed."""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from projclust.checkpoints.source import check_readable
from projclust.errors import CheckpointError
from projclust.onnx_export.needs import GRAPHS, Body
from projclust.results.reports import StoredGraph

# Fields of ModelProto and OperatorSetIdProto in onnx.proto.
_GRAPH, _OPSET_IMPORT, _DOMAIN, _VERSION = 7, 8, 1, 2
# Protobuf's kinds of values: numbers, what tells its own length, and what has always so many bytes.
_VARINT, _COUNTED, _FIXED = 0, 2, {1: 8, 5: 4}
# Longer than any import of operators.
_SHORT = 4096


def stored_graphs(folder: Path) -> list[StoredGraph]:
    """The graphs in a folder's onnx/, by name.

    Raises:
        CheckpointError: one of them is no ONNX file, or cut short.
    """
    bodies = {body.file: str(body) for body in Body}
    return [
        StoredGraph(f"{GRAPHS}/{path.name}", bodies.get(path.name), path.stat().st_size, _opset(path))
        for path in sorted((folder / GRAPHS).glob("*.onnx"))
    ]


def _opset(path: Path) -> int:
    """The version of ONNX's own operators that a graph asks for."""
    check_readable(path)
    try:
        with path.open("rb") as file:
            found = list(_fields(file, path.stat().st_size))
        imports = [dict(_fields(BytesIO(value), len(value))) for field, value in found if field == _OPSET_IMPORT]
        versions = [own[_VERSION] for own in imports if own.get(_DOMAIN, b"") in (b"", b"ai.onnx")]
        if _GRAPH in dict(found) and type(versions[0]) is int:
            return versions[0]
    except (OSError, LookupError, TypeError, ValueError):
        pass
    raise CheckpointError(f"{path} is not a readable ONNX file: export the model again")


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, Any]]:
    """The fields of a message: whole numbers, short texts as bytes, and None for all else, which is not read.

    Raises:
        ValueError: it is none, or has another end.
    """
    while file.tell() < end:
        tag = _varint(file)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            yield field, _varint(file)
            continue
        length = _varint(file) if kind == _COUNTED else _FIXED[kind]
        if file.tell() + length > end:
            raise ValueError
        if kind == _COUNTED and length < _SHORT:
            yield field, file.read(length)
        else:
            file.seek(length, os.SEEK_CUR)
            yield field, None


def _varint(file: BinaryIO) -> int:
    """A number of seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError
