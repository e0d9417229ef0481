"""What is lost of the tokens of each script, so that nobody finds out in production."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import ProjclustError
from projclust.results.reports import ScriptErrors
from projclust.weights.scripts import scripts_of_rows


def errors_by_script(
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    weights: Tensor | None,
    n_rows: int,
    error_of: Callable[[Tensor], float],
) -> dict[str, ScriptErrors] | None:
    """Return what is lost by script, those that weigh most first; None where there is no tokenizer that tells.

    `error_of` is called with the numbers of a script's rows, (N,), and gives their weighted relative error.
    """
    try:
        numbers, names = scripts_of_rows(tokenizer(), n_rows)
    except ProjclustError:
        return None
    weights = torch.ones(n_rows, dtype=torch.float64) if weights is None else weights
    found = {}
    for number, name in enumerate(names):
        rows = (numbers == number).nonzero().squeeze(1)
        found[name] = ScriptErrors(len(rows), float(weights[rows].sum() / weights.sum()), error_of(rows))
    return dict(sorted(found.items(), key=lambda item: -item[1].weight))
