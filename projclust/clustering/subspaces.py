"""Fitting subspaces to groups of rows, and rows to subspaces.

Two identities make both steps plain matrix products (no null spaces, no singular value decomposition of the rows):

* the squared distance of a row to a linear subspace is ``|x|^2 - |V x|^2`` for an orthonormal basis ``V``;
* the best subspace of every rank at once comes from one eigendecomposition of the group's weighted Gram matrix.

The table is read in blocks of rows, so it may stay in half precision, and no array of n x k x j ever exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# The largest temporary of a block, in bytes. On a CPU a few MB are as fast as many, and the peak memory of a fit stays
# near that of the table; on a GPU it should be large enough to fill the chip.
_BLOCK_BYTES_CPU = 4 * 2**20
_BLOCK_BYTES_CUDA = 512 * 2**20


@dataclass(frozen=True)
class Subspaces:
    """k subspaces of one rank j in d dimensions.

    Attributes:
        bases: (k, j, d) orthonormal rows, strongest direction first.
        means: (k, d) a point of each subspace, or None when all pass through the origin.
        spectra: (k, d) float64; all eigenvalues of each group's weighted scatter, largest first. The squared error
            of the group at any rank r is ``spectra[c, r:].sum()``.
    """

    bases: Tensor
    means: Tensor | None
    spectra: Tensor


def working_dtype(table: Tensor) -> torch.dtype:
    """The dtype of all arithmetic on `table`: float64 for a float64 table, float32 for every other."""
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def row_blocks(table: Tensor, width: int, rows: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(where, block)``: consecutive rows of `table`, or of ``table[rows]``, in the working dtype.

    `width` is the number of columns of the caller's largest temporary; it sets the number of rows in a block.
    """
    dtype = working_dtype(table)
    budget = _BLOCK_BYTES_CUDA if table.is_cuda else _BLOCK_BYTES_CPU
    step = max(256, budget // (dtype.itemsize * max(width, table.shape[1])))
    total = len(table) if rows is None else len(rows)
    for start in range(0, total, step):
        where = slice(start, min(start + step, total))
        block = table[where] if rows is None else table[rows[where]]
        yield where, block.to(dtype)


def squared_norms(table: Tensor) -> Tensor:
    """(n,) squared length of every row, in the working dtype."""
    norms = torch.empty(len(table), dtype=working_dtype(table), device=table.device)
    for where, block in row_blocks(table, table.shape[1]):
        norms[where] = block.square().sum(1)
    return norms


def rows_by_cluster(labels: Tensor, n_clusters: int) -> list[Tensor]:
    """The row numbers of each cluster, ascending."""
    order = labels.argsort(stable=True)
    sizes: list[int] = torch.bincount(labels, minlength=n_clusters).tolist()
    return list(order.split(sizes))


def fit_subspaces(
    table: Tensor,
    weights: Tensor | None,
    labels: Tensor,
    n_clusters: int,
    rank: int,
    affine: bool,
    exact: bool = False,
) -> Subspaces:
    """The best subspace of each group of rows, by weighted squared error.

    Args:
        table: (n, d).
        weights: (n,) non-negative row weights, or None for ones.
        labels: (n,) int64, the group of each row.
        rank: j < d.
        affine: also fit a mean to each group.
        exact: form the Gram matrices in float64 throughout, not only their sums and eigenvectors.
    """
    d = table.shape[1]
    dtype = working_dtype(table)
    bases = torch.empty(n_clusters, rank, d, dtype=dtype, device=table.device)
    means = torch.zeros(n_clusters, d, dtype=dtype, device=table.device) if affine else None
    spectra = torch.empty(n_clusters, d, dtype=torch.float64, device=table.device)
    for cluster, rows in enumerate(rows_by_cluster(labels, n_clusters)):
        gram = torch.zeros(d, d, dtype=torch.float64, device=table.device)
        first_moment = torch.zeros(d, dtype=torch.float64, device=table.device)
        mass = 0.0
        for where, block in row_blocks(table, d, rows):
            if exact:
                block = block.double()
            weighted = block
            if weights is not None:
                block_weights = weights[rows[where]].to(block.dtype)
                weighted = block * block_weights.unsqueeze(1)
                mass += block_weights.sum(dtype=torch.float64).item()
            else:
                mass += len(block)
            gram += weighted.T @ block
            if means is not None:
                first_moment += weighted.sum(0, dtype=torch.float64)
        if means is not None and mass > 0:
            mean = first_moment / mass
            gram -= mass * torch.outer(mean, mean)
            means[cluster] = mean
        values, vectors = _eigenvectors(gram)
        bases[cluster] = vectors[:, d - rank :].flip(1).T
        spectra[cluster] = values.flip(0).clamp_(min=0)
    return Subspaces(bases, means, spectra)


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and orthonormal eigenvectors of a symmetric float64 matrix.

    GPU eigensolvers have, in rare cases, failed or returned vectors that are not orthonormal; those go to the CPU.
    """
    if gram.is_cuda:
        try:
            values, vectors = torch.linalg.eigh(gram)
            identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            if (vectors.T @ vectors - identity).abs().max() < 1e-9:
                return values, vectors
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass
        values, vectors = torch.linalg.eigh(gram.cpu())
        return values.to(gram.device), vectors.to(gram.device)
    return torch.linalg.eigh(gram)


def assign_rows(table: Tensor, norms: Tensor, subspaces: Subspaces) -> tuple[Tensor, Tensor]:
    """The nearest subspace of every row.

    Args:
        table: (n, d).
        norms: (n,) squared row lengths, see `squared_norms`.

    Returns:
        labels (n,) int64 and the squared distances (n,) to those subspaces, in the working dtype.
    """
    k, j, _ = subspaces.bases.shape
    stacked = subspaces.bases.flatten(0, 1)  # (k*j, d)
    means = subspaces.means
    if means is not None:
        mean_coordinates = torch.einsum("kjd,kd->kj", subspaces.bases, means)
        mean_norms = means.square().sum(1)
    labels = torch.empty(len(table), dtype=torch.int64, device=table.device)
    distances = torch.empty(len(table), dtype=norms.dtype, device=table.device)
    for where, block in row_blocks(table, k * j):
        coordinates = (block @ stacked.T).view(-1, k, j)
        inside = torch.zeros((), dtype=block.dtype, device=block.device)
        if means is not None:
            coordinates -= mean_coordinates
            inside = 2 * (block @ means.T) - mean_norms  # |x|^2 - |x - m|^2, (rows, k)
        inside = inside + torch.linalg.vector_norm(coordinates, dim=-1).square()
        best, labels[where] = inside.max(1)
        distances[where] = norms[where] - best
    return labels, distances.clamp_(min=0)


def project_rows(table: Tensor, labels: Tensor, subspaces: Subspaces) -> tuple[Tensor, Tensor]:
    """Coordinates of every row in the basis of its own cluster, and what they leave out.

    Returns:
        coefficients (n, j) and squared residuals (n,), both in the working dtype; the residuals are taken from the
        rebuilt rows, so that they stay accurate when they are small.
    """
    k, j, d = subspaces.bases.shape
    dtype = working_dtype(table)
    coefficients = torch.empty(len(table), j, dtype=dtype, device=table.device)
    residuals = torch.empty(len(table), dtype=dtype, device=table.device)
    for cluster, rows in enumerate(rows_by_cluster(labels, k)):
        basis = subspaces.bases[cluster]
        for where, block in row_blocks(table, d, rows):
            if subspaces.means is not None:
                block = block - subspaces.means[cluster]
            inner = block @ basis.T
            coefficients[rows[where]] = inner
            residuals[rows[where]] = (block - inner @ basis).square().sum(1)
    return coefficients, residuals
