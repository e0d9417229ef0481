"""What callers hand in, and its checks: tables, row weights, options, and a function that is told of the progress."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projclust.errors import OptionError, ProjclustError
from projclust.options import FitOptions, Init, Method, check_combination, option

# Called once for every start that was judged, with its number from 1, the step 0 and its cost; and then after every
# full step with the number of starts, the number of the step from 1 and the cost.
Progress = Callable[[int, int, float], None]


def as_table(X: Any) -> Tensor:
    """A matrix of finite real entries as a float tensor, which shares its memory where it can."""
    with warnings.catch_warnings():
        # Nothing here writes to a table, so that read-only memory is as good as any.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        table = torch.as_tensor(X if isinstance(X, (Tensor, list)) else np.asarray(X)).detach()
    if table.dim() != 2:
        raise ProjclustError(f"the matrix must have two dimensions, not {table.dim()}")
    if table.is_complex():
        raise ProjclustError("the matrix must have real entries. Complex data not supported")
    if not table.is_floating_point():
        table = table.double()
    # Block by block and by extremes: isfinite alone would make temporaries of three times the table's size.
    for start in range(0, len(table), 4096):
        block = table[start : start + 4096]
        if block.numel() and not torch.isfinite(torch.stack(torch.aminmax(block))).all():
            row = start + int((~torch.isfinite(block).all(1)).nonzero()[0])
            raise ProjclustError(f"the matrix has NaN or infinite entries, the first in row {row}")
    return table


# Entries from 2^-40 to 2^40 have squares, and sums of these, that float32 holds with room to spare.
_ORDINARY_EXPONENT = 40


def as_ordinary(table: Tensor) -> tuple[Tensor, int]:
    """(n, d) the table over a power of two that makes its entries ordinary, and the exponent of that power.

    Squares of extreme entries leave the range of float32; what is fitted to such a table is fitted to this one, and
    scaled back. Both are exact but for the range. An ordinary table comes back itself, with the exponent 0.
    """
    largest = max((float(block.abs().max()) for block in table.split(4096) if block.numel()), default=0.0)
    exponent = math.frexp(largest)[1] - 1
    if largest == 0 or abs(exponent) <= _ORDINARY_EXPONENT:
        return table, 0
    exponent = max(exponent, -1000)
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    return (table.double() * 2.0**-exponent).to(dtype), exponent


def as_weights(sample_weight: Any, n: int, device: torch.device) -> Tensor | None:
    """(n,) float64 row weights that are not negative and not all zero, or None where there are none."""
    if sample_weight is None:
        return None
    if not isinstance(sample_weight, Tensor):
        try:
            sample_weight = np.array(sample_weight, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ProjclustError(f"row weights must be numbers: {error}") from None
    weights = torch.as_tensor(sample_weight, dtype=torch.float64, device=device)
    if weights.shape != (n,):
        raise ProjclustError(f"row weights must have shape ({n},), not {tuple(weights.shape)}")
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ProjclustError("row weights must be finite and not negative")
    if not 0 < weights.sum() < torch.inf:
        raise ProjclustError("row weights must have a positive, finite sum: with zero there is nothing to fit")
    return weights


@dataclass(frozen=True)
class ClusteringOptions(FitOptions):
    """What to fit and how; strings stand for the members of the enumerations.

    With adaptive ranks, rows choose by their distance and by what their coefficients cost, so that labels need not name
    the nearest subspace. Each of the `restarts` takes a few cheap steps on a sample of the rows; the best one goes on.

    Raises:
        OptionError: an option cannot have its value, or does not go with another.
    """

    n_clusters: int = option(5, "The number of subspaces k; 1 with method svd.", least=1)
    rank: int = option(40, "The dimension j of the subspaces, less than the number of columns.", least=1)
    method: Method = option(Method.PROJECTIVE, "What is fitted; svd and random are baselines.")
    init: Init = option(Init.SPHERICAL, "How starts are made: spherical k-means, residual seeding, or random.")

    def check(self) -> None:
        """Refuse options that exclude each other; see `Options.check`."""
        if self.method is Method.SVD and self.n_clusters != 1:
            raise OptionError(f"method svd is one subspace: k must be 1, not {self.n_clusters}")
        check_combination(self.method, self.n_clusters, self.ranks, self.loss)
