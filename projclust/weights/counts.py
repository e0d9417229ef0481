"""Row weights from a file of counts."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from projclust.errors import ProjclustError


def read_counts(path: Path, n_rows: int, vocabulary: Callable[[], dict[str, int]]) -> Tensor:
    """Row weights from a text file, in one of two forms.

    * `n_rows` lines of one number each: line i is the weight of row i;
    * lines of ``token<TAB>number``: tokens of the vocabulary that are not listed weigh nothing.

    Args:
        path: the file, UTF-8.
        n_rows: rows of the table.
        vocabulary: called for the second form only; gives the row of each token.

    Returns:
        (n_rows,) float64 between 0 and 1, the largest being 1.

    Raises:
        ProjclustError: with the line, when the file is not one of these.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjclustError(f"cannot read the counts file {path}: {_reason(error)}") from None
    if lines and lines[-1] == "":
        lines.pop()
    if any("\t" in line for line in lines):
        weights = _by_token(path, lines, n_rows, vocabulary())
    else:
        if len(lines) != n_rows:
            raise ProjclustError(
                f"the counts file {path} has {len(lines)} lines, but the table has {n_rows} rows: "
                "give one number for each row, or lines of token<TAB>number"
            )
        weights = [_number(path, number, line) for number, line in enumerate(lines, 1)]
    largest = max(weights)
    if largest == 0:
        raise ProjclustError(f"the counts in {path} are all zero: nothing to fit")
    # Only their ratios matter; scaled, no sum of them overflows.
    return torch.tensor(weights, dtype=torch.float64) / largest


def _by_token(path: Path, lines: list[str], n_rows: int, vocabulary: dict[str, int]) -> list[float]:
    weights = [0.0] * n_rows
    for number, line in enumerate(lines, 1):
        token, tab, count = line.rpartition("\t")
        row = vocabulary.get(token)
        if not tab or row is None or row >= n_rows:
            raise ProjclustError(f"{path}, line {number}: {line[:60]!r} is not a token of the vocabulary and a number")
        weights[row] += _number(path, number, count)
    return weights


def _number(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ProjclustError(f"{path}, line {number}: {text[:60]!r} is not a number of zero or more")
    return value


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
