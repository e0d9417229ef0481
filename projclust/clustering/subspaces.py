"""Subspaces, the assignment of rows to the nearest one, and orthonormal bases.

Distances need no null spaces: the squared distance of a row x to a linear subspace is ``|x|^2 - |V x|^2`` for an
orthonormal basis ``V``. With a mean, whose part outside the subspace is h, it is ``|x|^2 - (|V x|^2 + 2 x.h - |h|^2)``.
The code calls what is subtracted the energy that the subspace explains. So the assignment of rows is one matrix
product, made block by block, and no array of n x k x j ever exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from projclust.clustering.rows import Rows, block_bytes

# A matrix of at most so many entries is small: float64 arithmetic on it costs next to nothing.
SMALL = 2**16


@dataclass(frozen=True)
class Subspaces:
    """k subspaces in d dimensions, each of its own dimension."""

    bases: Tensor  # (k, j, d) orthonormal rows, strongest direction first; those beyond a subspace's rank are not used
    means: Tensor | None  # (k, d) a point of each subspace, or None where all pass through the origin
    ranks: list[int]

    @staticmethod
    def of(bases: Tensor, means: Tensor | None = None) -> "Subspaces":
        """Subspaces that all have the rank of `bases`."""
        return Subspaces(bases, means, [bases.shape[1]] * len(bases))

    def __len__(self) -> int:
        return len(self.bases)

    def basis(self, cluster: int) -> Tensor:
        """(j, d) the basis of one cluster, where j is its own rank."""
        return self.bases[cluster, : self.ranks[cluster]]


class Assignment(NamedTuple):
    """The nearest subspace of every row, and the squared distance to it, (n,) each."""

    labels: Tensor
    distances: Tensor


def assign_rows(rows: Rows, subspaces: Subspaces, penalties: Tensor | None = None) -> Assignment:
    """Assign every row to its nearest subspace; `penalties` (k,) come on top of its weighted squared distances."""
    bases = [subspaces.basis(cluster) for cluster in range(len(subspaces))]
    stacked, normals = torch.cat(bases), None
    if subspaces.means is not None:  # (k, d) the part of each mean outside its subspace
        pairs = zip(bases, subspaces.means, strict=True)
        normals = torch.stack([mean - (basis @ mean) @ basis for basis, mean in pairs])
    labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    distances = torch.empty_like(rows.norms)
    for where, block in rows.blocks(len(stacked)):
        coordinates = block @ stacked.T
        if len(set(subspaces.ranks)) == 1:
            parts = coordinates.view(len(block), len(bases), -1)
            explained = torch.linalg.vector_norm(parts, dim=-1).square()  # (rows, k)
        else:
            explained = torch.stack([part.square().sum(1) for part in coordinates.split(subspaces.ranks, 1)], 1)
        if normals is not None:
            explained += 2 * (block @ normals.T) - normals.square().sum(1)
        worth = explained
        if penalties is not None:
            weights = rows.weighted(torch.ones_like(explained[:, :1]), where)
            worth = explained - penalties / weights.clamp(min=torch.finfo(rows.dtype).tiny)
        labels[where] = worth.argmax(1)
        distances[where] = rows.norms[where] - explained.gather(1, labels[where].unsqueeze(1)).squeeze(1)
    return Assignment(labels, distances.clamp_(min=0))


def project_rows(rows: Rows, labels: Tensor, subspaces: Subspaces) -> tuple[Tensor, Tensor]:
    """The coefficients (n, j) of every row in the basis of its label, and the squared residuals (n,)."""
    coefficients = torch.zeros(len(rows), subspaces.bases.shape[1], dtype=rows.dtype, device=rows.device)
    residuals = torch.empty_like(rows.norms)
    for cluster, members in enumerate(rows_by_cluster(labels, len(subspaces))):
        basis = subspaces.basis(cluster)
        for which, centred in centred_blocks(rows, members, subspaces.means, cluster):
            inner = centred @ basis.T
            coefficients[which, : len(basis)] = inner
            # From the rebuilt rows, so that residuals stay accurate when they are small.
            residuals[which] = (centred - inner @ basis).square().sum(1)
    return coefficients, residuals


def centred_blocks(rows: Rows, members: Tensor, means: Tensor | None, cluster: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, block by block, the numbers of `members` of a cluster, and these rows less its mean, if it has one."""
    for where, block in rows.blocks(rows.dim, members):
        yield members[where], block if means is None else block - means[cluster].to(block.dtype)


def rows_by_cluster(labels: Tensor, n_clusters: int) -> list[Tensor]:
    """The row numbers of each cluster, in ascending order."""
    order = labels.argsort(stable=True)
    return list(order.split(torch.bincount(labels, minlength=n_clusters).tolist()))


def orthonormal_rows(matrices: Tensor) -> Tensor:
    """(..., j, d) orthonormal rows such that the first r of them span what the first r rows of each matrix span.

    Cholesky-QR does this mostly with matrix products. Large matrices are factored in their own precision, which is
    enough where the rows are far from dependent, as those of a basis that moved a little are; all others in float64.
    Where rows are too close to dependent for either, Householder's method on the CPU takes over. A matrix without full
    rank is completed by arbitrary directions.
    """
    stack = matrices.flatten(0, -3)
    bases = torch.empty_like(stack)
    at_once = max(1, block_bytes(stack.device) // (8 * stack[0].numel()))
    for part, out in zip(stack.split(at_once), bases.split(at_once), strict=True):
        good = torch.zeros(len(part), dtype=torch.bool)
        if part.dtype == torch.float32 and part[0].numel() > SMALL:
            found, good = _cholesky_orthonormal(part, 2e-6)
        if not good.all():
            found, good = _cholesky_orthonormal(part.double(), 1e-8)
        for cluster in (~good).nonzero().squeeze(1).tolist():
            exact = part[cluster].double()
            exact /= exact.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(exact.dtype).tiny)
            # A trace of the identity chooses the missing directions, which rounding would choose otherwise.
            hinted = exact + 1e-8 * torch.eye(*exact.shape, dtype=exact.dtype, device=exact.device)
            found[cluster] = torch.linalg.qr(hinted.T.cpu())[0].T.to(found.device, found.dtype)
        out.copy_(found)
    return bases.view_as(matrices)


def _cholesky_orthonormal(matrices: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Cholesky-QR in the given precision: (k, j, d) rows, and (k,) whether they are orthonormal to `tolerance`."""
    scaled = matrices / matrices.norm(dim=2, keepdim=True).clamp_(min=torch.finfo(matrices.dtype).tiny)
    factors, failed = torch.linalg.cholesky_ex(scaled @ scaled.mT)
    found = torch.linalg.solve_triangular(factors, scaled, upper=False)
    identity = torch.eye(found.shape[1], dtype=found.dtype, device=found.device)
    apart = (found @ found.mT - identity).abs().amax((1, 2))
    return found, (failed == 0) & (apart < tolerance)  # NaN compares as false
