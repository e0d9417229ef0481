"""What is lost of the tokens of each script, so that nobody finds out in production."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import ProjclustError
from projclust.results.reports import ScriptErrors
from projclust.weights.scripts import scripts_of_rows


class Scripts(NamedTuple):
    """The number of each row's script, (n,), and the names of the scripts."""

    numbers: Tensor
    names: list[str]

    @classmethod
    def of(cls, tokenizer: Callable[[], PreTrainedTokenizerBase], n_rows: int) -> "Scripts | None":
        """Those of a table's rows; None where there is no tokenizer that tells.

        A tokenizer of many languages takes as much memory as their table: ask it before a fit, and let it go.
        """
        try:
            return cls(*scripts_of_rows(tokenizer(), n_rows))
        except ProjclustError:
            return None


def errors_by_script(
    scripts: Scripts | None, weights: Tensor | None, error_of: Callable[[Tensor], float]
) -> dict[str, ScriptErrors] | None:
    """Return what is lost by script, those that weigh most first; None where the scripts are not known.

    `error_of` is called with the numbers of a script's rows, (N,), and gives their weighted relative error.
    """
    if scripts is None:
        return None
    weights = torch.ones(len(scripts.numbers), dtype=torch.float64) if weights is None else weights
    found = {}
    for number, name in enumerate(scripts.names):
        rows = (scripts.numbers == number).nonzero().squeeze(1)
        found[name] = ScriptErrors(len(rows), float(weights[rows].sum() / weights.sum()), error_of(rows))
    return dict(sorted(found.items(), key=lambda item: -item[1].weight))
