"""The reassignment of rows to subspaces: Hartigan's test, carried over from k-means.

Lloyd's step assigns a row to the nearest subspace. But the subspace that has the row has turned towards it, and the one
that it would join has not yet, so that the steps end early, where most rows look best served as they are. Hartigan's
test asks instead what a move changes once both subspaces have been fitted again (for k-means: Hartigan & Wong, "A
K-Means Clustering Algorithm", 1979). How the sum of the j leading eigenvalues of a scatter responds to a row x of
weight w gives, to second order in the row and with its squared distance r^2,

    leaving lowers the cost by about  w r^2 / (1 - h),    joining raises it by about  w r^2 / (1 + h),
    h = w sum_i u_i^2 / (l_i - m),

where u_i are the coordinates of x, l_i the leading eigenvalues and m the mean of the others. h is the row's leverage.
The energies u_i^2 are assumed to be distributed over the directions like those of the whole cluster, so that h needs
only the energy of the row that the subspace explains.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from projclust.clustering.rows import Rows
from projclust.clustering.subspaces import Subspaces

# The gap of a subspace says in a byte how much worse it is for a row than the row's best one: 0 for the best, 255 for a
# difference as large as the row's squared length or larger. Its square root is stored, to resolve small differences.
GAP_LEVELS = 255

# The expansion is good for small h; beyond this bound a single row would count like more than ten.
_MOST_LEVERAGE = 0.9

# Products take rows in multiples of this: for bfloat16 on a CPU, oneDNN builds a kernel for each new shape.
_ROUND_ROWS = 128


@dataclass(frozen=True)
class Leverage:
    """The leverage of a row of weight one in each of k subspaces."""

    per_energy: Tensor  # (k,) for every unit of its energy in the subspace
    per_row: Tensor | None  # (k,) in the mean; None for linear subspaces

    @staticmethod
    def none(subspaces: Subspaces) -> "Leverage":
        """No leverage, which makes Hartigan's test Lloyd's step."""
        return Leverage(subspaces.bases.new_zeros(len(subspaces)), None)

    @staticmethod
    def of(energies: Tensor, totals: Tensor, masses: Tensor, dim: int, affine: bool) -> "Leverage":
        """The leverage where directions capture `energies` (k, j) of `totals` (k,) and weights sum to `masses` (k,)."""
        captured = energies.sum(1)
        left = ((totals - captured) / (dim - energies.shape[1])).clamp(min=0).unsqueeze(1)
        # Directions that have not yet converged may capture less than those left out.
        gaps = torch.maximum(energies - left, 0.1 * energies)
        responses = torch.where(energies > 0, energies / gaps, 0).sum(1)
        per_energy = torch.where(captured > 0, responses / captured, 0)
        return Leverage(per_energy, torch.where(masses > 0, 1 / masses, 0) if affine else None)


class Proposal(NamedTuple):
    """The best subspace for each row, and by how much its move is expected to lower the cost, per unit of weight."""

    labels: Tensor
    gains: Tensor


def propose_moves(
    rows: Rows,
    subspaces: Subspaces,
    labels: Tensor,
    leverage: Leverage,
    dtype: torch.dtype | None = None,
    which: Tensor | None = None,
) -> tuple[Proposal, Tensor]:
    """Compare all subspaces, which have one rank, for the m rows `which`, by default all, while the others stay.

    Products with the rows are in `dtype`. With the proposal come the gaps (m, k) uint8; see `GAP_LEVELS`.
    """
    test = _HartiganTest(rows, subspaces, leverage, dtype)
    found = Proposal(labels.clone(), torch.zeros_like(rows.norms))
    count = len(rows) if which is None else len(which)
    gaps = torch.empty(count, len(subspaces), dtype=torch.uint8, device=rows.device)
    for where, block in rows.blocks(test.bases.shape[:2].numel(), which):
        here = where if which is None else which[where]
        costs = test.costs(here, block, labels[here])
        best, found.labels[here] = costs.min(1)
        found.gains[here] = costs.gather(1, labels[here].unsqueeze(1)).squeeze(1) - best
        lengths = rows.norms[here].clamp(min=torch.finfo(rows.dtype).tiny)
        shares = (costs - best.unsqueeze(1)) / lengths.unsqueeze(1)
        gaps[where] = (shares.clamp_(0, 1).sqrt_() * GAP_LEVELS).to(torch.uint8)
    return found, gaps


def propose_moves_among(
    rows: Rows,
    subspaces: Subspaces,
    labels: Tensor,
    leverage: Leverage,
    candidates: Tensor,
    dtype: torch.dtype | None = None,
) -> Proposal:
    """Compare only the candidates (n, k) bool of every row, its own subspace among them; a row without any stays."""
    test = _HartiganTest(rows, subspaces, leverage, dtype)
    found = Proposal(labels.clone(), torch.zeros_like(rows.norms))
    best = torch.full_like(rows.norms, torch.inf)
    own = torch.full_like(rows.norms, torch.inf)
    for cluster in range(len(subspaces)):
        which = candidates[:, cluster].nonzero().squeeze(1)
        for where, block in rows.blocks(test.bases.shape[1], which):
            here = which[where]
            costs = test.costs(here, block, labels[here], slice(cluster, cluster + 1)).squeeze(1)
            own[here] = torch.where(labels[here] == cluster, costs, own[here])
            better = costs < best[here]
            best[here] = torch.where(better, costs, best[here])
            found.labels[here] = torch.where(better, cluster, found.labels[here])
    moved = found.labels != labels
    found.gains[moved] = own[moved] - best[moved]
    return found


class _HartiganTest:
    """Subspaces with their leverage, made ready for products with blocks of rows."""

    def __init__(self, rows: Rows, subspaces: Subspaces, leverage: Leverage, dtype: torch.dtype | None) -> None:
        rank, means = subspaces.ranks[0], subspaces.means
        self.rows, self.means = rows, means
        self.bases = subspaces.bases[:, :rank].to(dtype or rows.dtype)  # (k, j, d)
        self.offsets = None if means is None else torch.einsum("kjd,kd->kj", subspaces.bases[:, :rank], means)
        per_row = torch.zeros_like(leverage.per_energy) if leverage.per_row is None else leverage.per_row
        self.per_energy, self.per_row = leverage.per_energy.to(rows.dtype), per_row.to(rows.dtype)

    def costs(self, where: slice | Tensor, block: Tensor, labels: Tensor, these: slice = slice(None)) -> Tensor:
        """(rows, these) what leaving its own subspace saves for each row of a block, and what joining others costs."""
        rows, bases = self.rows, self.bases[these]
        padded = torch.nn.functional.pad(block.to(bases.dtype), (0, 0, 0, -len(block) % _ROUND_ROWS))
        coordinates = (padded @ bases.flatten(0, 1).T)[: len(block)].view(len(block), *bases.shape[:2])
        squares = rows.norms[where].unsqueeze(1)
        if self.means is not None and self.offsets is not None:
            means = self.means[these]
            coordinates = coordinates - self.offsets[these]
            squares = squares - 2 * (block @ means.T) + means.square().sum(1)
        energies = torch.linalg.vector_norm(coordinates, dim=2, dtype=rows.dtype).square()
        leverages = energies * self.per_energy[these] + self.per_row[these]
        leverages = rows.weighted(leverages, where).clamp_(max=_MOST_LEVERAGE)
        clusters = torch.arange(len(self.bases), device=rows.device)[these]
        leverages = torch.where(labels.unsqueeze(1) == clusters, -leverages, leverages)
        return (squares - energies).clamp_(min=0) / (1 + leverages)
