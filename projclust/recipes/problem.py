"""What a recipe is fitted to, what comes of it, and how far the stored rows are off."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from projclust.clustering.fit import Clustering
from projclust.clustering.inputs import as_table, as_weights
from projclust.clustering.rows import rows_at_once
from projclust.coding.fit import CodedMatrix
from projclust.errors import ProjclustError
from projclust.recipes.recipe import Recipe
from projclust.shapes import CodedShape, DenseShape, FactoredShape
from projclust.tables import CodedEmbedding

# Makes rows of the stored table, (N, d), from their numbers, (N,).
Rebuild = Callable[[Tensor], Tensor]


class Errors(NamedTuple):
    """Squared error of rebuilt rows over the squared norm of the exact ones.

    Attributes:
        plain: every row counts as it is.
        weighted: every row counts by its weight.
    """

    plain: float
    weighted: float


@dataclass(frozen=True)
class RowErrors:
    """How far each of some rows is off: squared errors and squared norms, (N,) float64 on the CPU."""

    lost: Tensor
    norms: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, rebuild: Rebuild, table: Tensor, rows: Tensor | None = None) -> "RowErrors":
        """Those of all rows of a table (n, d), or of some, (N,) their numbers."""
        rows = torch.arange(len(table), device=table.device) if rows is None else rows
        # Filled: small tensors that outlive large ones would keep an allocator from using their place again.
        found, start = torch.zeros(2, len(rows), dtype=torch.float64), 0
        for ids in rows.split(rows_at_once(table)):
            exact, own = table[ids].double(), slice(start, start + len(ids))
            found[0, own] = (rebuild(ids).to(exact) - exact).square_().sum(1).cpu()
            found[1, own] = exact.square().sum(1).cpu()
            start += len(ids)
        return cls(*found)

    def relative(self, weights: Tensor | None = None, places: Tensor | slice = slice(None)) -> float:
        """The sum of the squared errors over that of the squared norms, with weights (N,), at some places or at all.

        Zeros have no error.
        """
        own = (torch.ones_like(self.lost) if weights is None else weights.to(self.lost))[places]
        lost, norm = float(self.lost[places] @ own), float(self.norms[places] @ own)
        return lost / norm if norm > 0 else 0.0

    def summed(self, weights: Tensor | None) -> Errors:
        """The one error that is reported, with the weights of these rows and without."""
        return Errors(self.relative(), self.relative(weights))


def relative_errors(rebuild: Rebuild, table: Tensor, weights: Tensor | None, rows: Tensor | None = None) -> Errors:
    """The errors of all rows of a table (n, d), or of some, (N,) their numbers; the weights are of all."""
    own = weights if weights is None or rows is None else weights[rows.to(weights.device)]
    return RowErrors.of(rebuild, table, rows).summed(own)


@dataclass(frozen=True)
class Problem:
    """The table that a recipe is fitted to, and how.

    Attributes:
        table: (n, d), of any float dtype.
        weights: (n,) float64 row weights on the CPU; None where all are one.
        sensitivity: (d, d), in whose coordinates errors of codes "auto" count; None for the identity.
        device: where to compute; None for where the table is.
        process_group: processes that share the fit of subspaces and get the same result.
        on_step: told of every start and step of a fit of subspaces, see `fit_clustering`.
        on_rows: told while rows are coded, with how many are and of how many.
    """

    table: Tensor
    weights: Tensor | None = None
    sensitivity: Tensor | None = None
    device: torch.device | str | None = None
    process_group: "dist.ProcessGroup | None" = None
    on_step: Callable[[int, int, float], None] | None = None
    on_rows: Callable[[int, int], None] | None = None

    @classmethod
    def of(cls, table: Tensor, weights: Tensor | None = None, **more: object) -> "Problem":
        """A problem whose table and weights are checked.

        Raises:
            ProjclustError: the table is empty or has NaN or infinite entries, or the weights are none.
        """
        table = as_table(table)
        if 0 in table.shape:
            raise ProjclustError("the table has no rows or no columns")
        return cls(table, as_weights(weights, len(table), torch.device("cpu")), **more)  # type: ignore[arg-type]

    @property
    def shape(self) -> DenseShape:
        """The shape of the table."""
        return DenseShape(len(self.table), self.table.shape[1], str(self.table.dtype).removeprefix("torch."))

    @cached_property
    def relative_weights(self) -> Tensor | None:
        """The row weights as float32 on the table's device, the largest being one."""
        return None if self.weights is None else (self.weights / self.weights.max()).float().to(self.table.device)

    @cached_property
    def table_on_device(self) -> Tensor:
        """The table where it is computed with."""
        return self.table if self.device is None else self.table.to(self.device)


@dataclass(frozen=True)
class Factors:
    """A table as coefficients in subspaces, in the dtype that is stored.

    Attributes:
        labels: (n,) the cluster of each row.
        coefficients: (n, j), bases: (k, j, d), means: (k, d) or None; j is the largest rank.
    """

    labels: Tensor
    coefficients: Tensor
    bases: Tensor
    means: Tensor | None

    def rows(self, ids: Tensor) -> Tensor:
        """(N, d) rows of the table."""
        ids = ids.to(self.labels.device)
        labels, bases = self.labels[ids], self.bases.float()
        rows = torch.empty(len(ids), bases.shape[2], device=labels.device)
        for cluster, basis in enumerate(bases):
            own = labels == cluster
            rows[own] = self.coefficients[ids[own]].float() @ basis
            if self.means is not None:
                rows[own] += self.means[cluster].float()
        return rows


@dataclass(frozen=True)
class Fitted:
    """A table as a recipe stores it.

    Attributes:
        recipe: settled: with the rank or the bits that the target came to.
        problem: what it was fitted to.
        bytes: everything that is stored.
        parameters: numbers that are stored, or that have codes.
        shape: the shape of what is stored; None for a baseline.
        clustering: the fit of subspaces, where there is one.
        factors: what float codes store.
        coded: what other codes store.
        rebuild: makes the rows of a baseline, which stores nothing.
    """

    recipe: Recipe
    problem: Problem
    bytes: int
    parameters: int
    shape: FactoredShape | CodedShape | None = None
    clustering: Clustering | None = None
    factors: Factors | None = None
    coded: CodedMatrix | None = None
    rebuild: Rebuild | None = None

    def rows(self, ids: Tensor) -> Tensor:
        """(N, d) rows of the stored table."""
        if self.factors is not None:
            return self.factors.rows(ids)
        if self.rebuild is not None:
            return self.rebuild(ids)
        return self._decoder.decode(ids.to(self._decoder.codes.device))

    @cached_property
    def _decoder(self) -> CodedEmbedding:
        assert self.coded is not None
        return decoder(self.coded)

    @cached_property
    def errors(self) -> Errors:
        """How far the stored rows are off."""
        return relative_errors(self.rows, self.problem.table, self.problem.weights)


def decoder(coded: CodedMatrix) -> CodedEmbedding:
    """What reads the rows of a coded table, in float32."""
    embedding = CodedEmbedding(coded.shape, dtype=torch.float32, device=coded.stored["weight"].device)
    embedding.set_stored(coded.stored)
    return embedding


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes and leaves, as `plan` shows it.

    Attributes:
        name: what the recipe is called, without its size.
        bytes: everything that would be stored.
        errors: how far its rows are off.
        predicted: whether the errors are estimates.
        rebuild: makes rows; None where that would take too long.
        rebuilds_at_once: whether rebuilding rows together is cheaper than in blocks.
        seconds: what finding out took.
    """

    name: str
    bytes: int
    errors: Errors
    predicted: bool
    rebuild: Rebuild | None
    rebuilds_at_once: bool = False
    seconds: float = field(default=0.0, compare=False)
