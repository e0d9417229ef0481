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
    * lines of ``token<TAB>number``: tokens of the vocabulary that are not listed weigh nothing. A token may have line
      breaks in it.

    The vocabulary, which gives the row of each token, is asked for in the second form only. The weights are float64
    between 0 and 1, the largest being 1.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # a carriage return may be a token
    except UnicodeDecodeError:
        raise ProjclustError(f"cannot read the counts file {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise ProjclustError(f"cannot read the counts file {path}: {error.strerror or error}") from None
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
    weights, begun = [0.0] * n_rows, ""
    for number, line in enumerate(lines, 1):
        token, tab, count = (begun + line).rpartition("\t")
        if not tab and number < len(lines):
            begun += line + "\n"  # which is a token of some vocabularies, or in one
            continue
        row = vocabulary.get(token)
        if not tab or row is None or row >= n_rows:
            first, text = number - begun.count("\n"), begun + line
            raise ProjclustError(f"{path}, line {first}: {text[:60]!r} is not a token of the vocabulary and a number")
        weights[row] += _number(path, number, count)
        begun = ""
    return weights


def _number(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ProjclustError(f"{path}, line {number}: {text[:60]!r} is not a number of zero or more")
    return value
