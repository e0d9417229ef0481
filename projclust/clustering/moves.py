"""Which rows to move to another subspace: Hartigan's test, for subspaces.

Lloyd's step gives a row to the nearest subspace. But the subspace a row is in has bent towards it, and the one it would
join has not yet, so that steps end early where most rows look best served as they are. Hartigan's test asks instead
what a move changes once both subspaces have followed it (for k-means: Hartigan & Wong, "A K-Means Clustering
Algorithm", 1979). To second order in the row, the sum of the j leading eigenvalues of a scatter answers a row x of
weight w so that, with squared distance r^2,

    leaving lowers the cost by about  w r^2 / (1 - h),    joining raises it by about  w r^2 / (1 + h),
    h = w sum_i u_i^2 / (l_i - m),

where u_i are the coordinates of x, l_i the leading eigenvalues and m the mean of the others. h is the row's leverage.
Here the energies u_i^2 are taken to be shared out as those of the whole cluster, so that h needs no more of the row
than what the subspace explains of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Rows
from .subspaces import Subspaces

# How much worse than its best a subspace is for a row, as a byte: 0 for the best, 255 for a difference as large as the
# row's squared length or larger. The square root keeps the resolution for the small gaps, which decide.
GAP_LEVELS = 255

# The expansion in h is good for small ones, and a row must not count as more than ten.
_MOST_LEVERAGE = 0.9

# Products take rows in multiples of this: each new shape costs oneDNN, which does bfloat16 ones on a CPU, a new kernel.
_ROUND_ROWS = 128


@dataclass(frozen=True)
class Leverage:
    """How far each of k subspaces follows a row.

    Attributes:
        per_energy: (k,) leverage of a row of weight one for every unit of its energy in the subspace.
        per_row: (k,) what having a mean adds, or None for linear subspaces.
    """

    per_energy: Tensor
    per_row: Tensor | None

    @staticmethod
    def none(subspaces: Subspaces) -> "Leverage":
        """No subspace follows a row: Lloyd's step."""
        return Leverage(subspaces.bases.new_zeros(len(subspaces)), None)

    @staticmethod
    def of(energies: Tensor, totals: Tensor, masses: Tensor, dim: int, affine: bool) -> "Leverage":
        """From the moments of the clusters, in float64.

        Args:
            energies: (k, j) that each direction captures.
            totals: (k,) energy of each cluster.
            masses: (k,) weight of each cluster.
            dim: d.
            affine: whether the subspaces have means.
        """
        captured = energies.sum(1)
        left = ((totals - captured) / (dim - energies.shape[1])).clamp(min=0).unsqueeze(1)
        # Directions that iteration has not yet turned may capture less than those left out.
        gaps = torch.maximum(energies - left, 0.1 * energies)
        responses = torch.where(energies > 0, energies / gaps, 0).sum(1)
        per_energy = torch.where(captured > 0, responses / captured, 0)
        return Leverage(per_energy, torch.where(masses > 0, 1 / masses, 0) if affine else None)


@dataclass(frozen=True)
class Look:
    """What a look at some subspaces says of every row.

    Attributes:
        labels: (n,) int64, the best subspace for it.
        gains: (n,) what moving there is expected to lower the cost by, for each unit of its weight.
    """

    labels: Tensor
    gains: Tensor


def look_at_all(
    rows: Rows,
    subspaces: Subspaces,
    labels: Tensor,
    leverage: Leverage,
    dtype: torch.dtype | None = None,
    which: Tensor | None = None,
) -> tuple[Look, Tensor]:
    """Look at every subspace for every row, or for some, and the others stay.

    Args:
        rows: n rows.
        subspaces: k of one rank.
        labels: (n,) int64, where the rows are.
        leverage: of the subspaces.
        dtype: of the products with the rows; default: that of all arithmetic.
        which: (m,) numbers of the rows to look at; default: all n.

    Returns:
        the look, and the gaps (m, k) uint8 by which each subspace is worse than the best, see `GAP_LEVELS`.
    """
    view = _View(rows, subspaces, leverage, dtype)
    found = Look(labels.clone(), torch.zeros_like(rows.norms))
    count = len(rows) if which is None else len(which)
    gaps = torch.empty(count, len(subspaces), dtype=torch.uint8, device=rows.device)
    for where, block in rows.blocks(view.bases.shape[:2].numel(), which):
        here = where if which is None else which[where]
        costs = view.costs(here, block, labels[here])
        best, found.labels[here] = costs.min(1)
        found.gains[here] = costs.gather(1, labels[here].unsqueeze(1)).squeeze(1) - best
        shares = (costs - best.unsqueeze(1)) / rows.norms[here].clamp(min=view.tiny).unsqueeze(1)
        gaps[where] = (shares.clamp_(0, 1).sqrt_() * GAP_LEVELS).to(torch.uint8)
    return found, gaps


def look_at_contested(
    rows: Rows,
    subspaces: Subspaces,
    labels: Tensor,
    leverage: Leverage,
    contenders: Tensor,
    dtype: torch.dtype | None = None,
) -> Look:
    """Look only at some subspaces, one product with the rows of each.

    Args:
        rows, subspaces, labels, leverage, dtype: as for `look_at_all`.
        contenders: (n, k) which subspaces to look at; a row's own is among them, or there are none and it stays.
    """
    view = _View(rows, subspaces, leverage, dtype)
    found = Look(labels.clone(), torch.zeros_like(rows.norms))
    best = torch.full_like(rows.norms, torch.inf)
    own = torch.full_like(rows.norms, torch.inf)
    for cluster in range(len(subspaces)):
        which = contenders[:, cluster].nonzero().squeeze(1)
        for where, block in rows.blocks(view.bases.shape[1], which):
            here = which[where]
            costs = view.costs(here, block, labels[here], cluster).squeeze(1)
            own[here] = torch.where(labels[here] == cluster, costs, own[here])
            better = costs < best[here]
            best[here] = torch.where(better, costs, best[here])
            found.labels[here] = torch.where(better, cluster, found.labels[here])
    moved = found.labels != labels
    found.gains[moved] = own[moved] - best[moved]
    return found


class _View:
    """Subspaces made ready for looks."""

    def __init__(self, rows: Rows, subspaces: Subspaces, leverage: Leverage, dtype: torch.dtype | None) -> None:
        rank, means = subspaces.ranks[0], subspaces.means
        self.rows = rows
        self.tiny = torch.finfo(rows.dtype).tiny
        self.bases = subspaces.bases[:, :rank].to(dtype or rows.dtype)  # (k, j, d)
        self.means = means
        self.offsets = None if means is None else torch.einsum("kjd,kd->kj", subspaces.bases[:, :rank], means)
        self.per_energy = leverage.per_energy.to(rows.dtype)
        self.per_row = None if leverage.per_row is None else leverage.per_row.to(rows.dtype)

    def costs(self, where: slice | Tensor, block: Tensor, labels: Tensor, cluster: int | None = None) -> Tensor:
        """(rows, k) of leaving the subspace that `labels` say, and of joining any other; or (rows, 1) of one cluster.

        Args:
            where: which rows these are.
            block: (rows, d) of them.
            labels: (rows,) where they are.
            cluster: the only subspace to look at.
        """
        rows, these = self.rows, slice(None) if cluster is None else slice(cluster, cluster + 1)
        bases = self.bases[these]
        padded = torch.nn.functional.pad(block.to(bases.dtype), (0, 0, 0, -len(block) % _ROUND_ROWS))
        coordinates = (padded @ bases.flatten(0, 1).T)[: len(block)].view(len(block), *bases.shape[:2])
        squares = rows.norms[where].unsqueeze(1)
        if self.means is not None and self.offsets is not None:
            means = self.means[these]
            coordinates = coordinates - self.offsets[these]
            squares = squares - 2 * (block @ means.T) + means.square().sum(1)
        energies = torch.linalg.vector_norm(coordinates, dim=2, dtype=rows.dtype).square()
        leverages = energies * self.per_energy[these]
        if self.per_row is not None:
            leverages += self.per_row[these]
        leverages = rows.weighted(leverages, where).clamp_(max=_MOST_LEVERAGE)
        clusters = torch.arange(len(self.bases), device=rows.device)[these]
        leverages = torch.where(labels.unsqueeze(1) == clusters, -leverages, leverages)
        return (squares - energies).clamp_(min=0) / (1 + leverages)
