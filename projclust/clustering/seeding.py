"""Where projective clustering starts: first labels, and low-rank subspaces settled on a sample of the rows.

Several starts run side by side: their bases, stacked, make one product with each block of rows.
"""

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from .moments import fit_subspaces
from .rows import Rows
from .subspaces import Subspaces, assign_rows, orthonormal_rows

_KMEANS_STEPS = 15


class Init(str, Enum):
    """How the first labels are found."""

    SPHERICAL = "spherical"  # k-means on the directions of the rows
    RESIDUAL = "residual"  # one subspace at a time, around rows the earlier ones serve badly
    RANDOM = "random"  # equal random groups, as in the paper


def first_labels(
    init: Init, rows: Rows, n_clusters: int, starts: int, rank: int, generator: torch.Generator, left: float = 0.0
) -> Tensor:
    """(starts, n) int64 labels to start from; drawn on the CPU, so that they are the same on every device.

    Args:
        init: how.
        rows: n of them.
        n_clusters: k.
        starts: how many.
        rank: of the subspaces that residual seeding tries.
        generator: of all random choices.
        left: the share of energy that one direction leaves, if known: where it is large, a coarse search will do.
    """
    match init:
        case Init.SPHERICAL:
            return _spherical_kmeans(rows, n_clusters, starts, generator, left)
        case Init.RESIDUAL:
            return torch.stack([_residual_seeding(rows, n_clusters, rank, generator) for _ in range(starts)])
        case Init.RANDOM:
            return torch.stack([random_partition(rows, n_clusters, generator) for _ in range(starts)])


def random_partition(rows: Rows, n_clusters: int, generator: torch.Generator) -> Tensor:
    """(n,) random groups whose sizes, over all processes, differ by at most one row."""
    labels = torch.randperm(rows.total, generator=generator) % n_clusters
    return labels.to(rows.device)[rows.numbers]


def _spherical_kmeans(rows: Rows, n_clusters: int, starts: int, generator: torch.Generator, left: float) -> Tensor:
    """k-means on rows scaled to unit length, started with k-means++ (Arthur & Vassilvitskii 2007).

    Only directions count, not lengths: weighing rows by |x|^2, their share of the cost, ended in higher costs.
    """
    n, d, k = len(rows), rows.dim, n_clusters
    scale = rows.norms.clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    mass = torch.ones_like(scale) if rows.weights is None else rows.weights
    directions = torch.zeros(starts, k, d, dtype=rows.dtype, device=rows.device)
    spread = torch.ones(n, starts, dtype=rows.dtype, device=rows.device)  # 1 - cosine to the nearest direction so far
    for cluster in range(k):
        seeds = rows.take(_draw(rows, mass.unsqueeze(1) * spread, generator))  # (starts, d)
        directions[:, cluster] = torch.nn.functional.normalize(seeds, dim=1)
        for where, block in rows.blocks(d):
            gap = 1 - (block @ directions[:, cluster].T) * scale[where].unsqueeze(1)
            spread[where] = (gap if cluster == 0 else torch.minimum(spread[where], gap)).clamp_(min=0)

    labels = torch.zeros(starts, n, dtype=torch.int64, device=rows.device)
    dtype = rows.search_dtype(left)
    share = mass * scale  # share * x is the row's unit vector times its weight
    for _ in range(_KMEANS_STEPS):
        sums = torch.zeros_like(directions)
        moved = torch.zeros((), dtype=torch.int64, device=rows.device)
        compared = directions.flatten(0, 1).to(dtype)
        for where, block in rows.blocks(starts * k, dtype=dtype):
            nearest = (block @ compared.T).view(-1, starts, k).argmax(2)  # (rows, starts)
            moved += (nearest != labels[:, where].T).sum()
            labels[:, where] = nearest.T
            # A product with the one-hot labels instead of index_add_, whose order of summation varies on a GPU.
            shares = torch.nn.functional.one_hot(nearest, k) * share[where].view(-1, 1, 1)
            sums += (shares.flatten(1).T.to(block.dtype) @ block).view_as(sums)
        lengths = rows.team.sum(sums).norm(dim=2, keepdim=True)
        directions = torch.where(lengths > 0, sums / lengths, directions)
        if int(rows.team.sum(moved)) == 0:
            break
    return labels


def left_by_one_direction(rows: Rows) -> float:
    """The share of the rows' energy that their strongest direction leaves, or a little more: by power iterations."""
    direction = torch.ones(rows.dim, dtype=rows.dtype, device=rows.device)
    energy = 0.0
    for _ in range(3):
        direction = torch.nn.functional.normalize(direction, dim=0)
        product = torch.zeros_like(direction)
        for where, block in rows.blocks(rows.dim):
            product += rows.weighted((block @ direction).unsqueeze(1), where).squeeze(1) @ block
        energy, direction = float(rows.team.sum(product) @ direction), product
    return 1 - energy / max(rows.weighted_sum(rows.norms), torch.finfo(rows.dtype).tiny)


def _residual_seeding(rows: Rows, n_clusters: int, rank: int, generator: torch.Generator) -> Tensor:
    """k-means++ for subspaces: each new one is fitted to the neighbours (by angle) of a row drawn by its residual."""
    distances = rows.norms.clone()
    bases: list[Tensor] = []
    group_size = min(rows.total, max(2 * rank, rows.total // n_clusters))
    scale = rows.norms.clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    for _ in range(n_clusters):
        mass = distances if rows.weights is None else distances * rows.weights
        center = rows.take(_draw(rows, mass.unsqueeze(1), generator)).squeeze(0)
        cosines = torch.empty_like(rows.norms)
        for where, block in rows.blocks(rows.dim):
            cosines[where] = (block @ center) * scale[where]
        nearest = rows.gather(cosines.abs()).topk(group_size).values[-1]
        group = torch.where(cosines.abs() >= nearest, 0, 1)
        bases.append(fit_subspaces(rows, group, 1, rank)[0].bases)
        distances = torch.minimum(distances, assign_rows(rows, Subspaces.of(bases[-1])).distances)
    return assign_rows(rows, Subspaces.of(torch.cat(bases))).labels


def _draw(rows: Rows, mass: Tensor, generator: torch.Generator) -> Tensor:
    """(starts,) numbers of rows, of all processes, drawn by the columns of `mass` (n, starts); uniformly if all 0."""
    cumulative = rows.gather(mass).double().cpu().cumsum(0)
    points = torch.rand(mass.shape[1], dtype=torch.float64, generator=generator)
    drawn = []
    for column, point in zip(cumulative.T, points, strict=True):
        if column[-1] <= 0:
            column = torch.arange(1, len(column) + 1, dtype=torch.float64)
        found = torch.searchsorted(column.contiguous(), point * column[-1], right=True)
        drawn.append(min(int(found), len(column) - 1))
    return torch.tensor(drawn)


def scout(
    sample: Rows,
    labels: Tensor,
    n_clusters: int,
    ranks: Sequence[int],
    generator: torch.Generator,
    left: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Settle the large structure of several starts at low ranks, and keep the best one.

    Low-rank subspaces discriminate between rows that high-rank ones serve equally well. On real tables starting low
    and climbing lowers the final cost more than further starts do. The worse half of the starts is given up before the
    last rank, which costs more than all before.

    Args:
        sample: m rows.
        labels: (starts, m) int64.
        n_clusters: k.
        ranks: ascending.
        generator: of the directions to start from.
        left: as for `first_labels`.

    Returns:
        (k, last rank, d) bases of the best start; and (starts,) float64 cost of each at its last rank.
    """
    starts, d = len(labels), sample.dim
    total = sample.weighted_sum(sample.norms)
    costs = torch.full((starts,), torch.inf, dtype=torch.float64, device=sample.device)
    running = torch.arange(starts, device=sample.device)
    bases = torch.empty(starts, n_clusters, 0, d, dtype=sample.dtype, device=sample.device)
    for level, rank in enumerate(ranks):
        if level and rank == ranks[-1]:
            running = costs.argsort()[: (starts + 1) // 2]
            bases = bases[running]
        known = bases.shape[2]
        more = torch.randn(len(running), n_clusters, rank - known, d, dtype=sample.dtype, generator=generator)
        bases = _orthonormal(torch.cat([bases, more.to(sample.device)], 2))
        # The random directions become good ones while the rows stay where the known directions, or the labels, say.
        for compared in [known, rank, rank] if known else [None, None, rank, rank]:
            products, captured = _products(sample, bases, compared, labels, sample.search_dtype(left))
            bases = _orthonormal(products)
        costs[running] = total - captured
        left = float(costs.min()) / max(total, torch.finfo(sample.dtype).tiny)
    best = int(costs[running].argmin())
    return bases[best], costs


def _orthonormal(bases: Tensor) -> Tensor:
    return orthonormal_rows(bases.flatten(0, 1)).view_as(bases)


def _products(
    sample: Rows, bases: Tensor, rank: int | None, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Each basis times the scatter of the rows nearest to its first `rank` directions; None: that `labels` give it.

    All in `dtype`: these are bases to start from.

    Returns:
        products like `bases` (starts, k, r, d), and the energy (starts,) that the first `rank` directions capture.
    """
    starts, k, r, _ = bases.shape
    products = torch.zeros_like(bases)
    captured = torch.zeros(starts, dtype=torch.float64, device=sample.device)
    bases = bases.flatten(0, 2).to(dtype)
    for where, block in sample.blocks(starts * k * r, dtype=dtype):
        coordinates = (block @ bases.T).view(-1, starts, k, r)
        lengths = torch.linalg.vector_norm(coordinates[..., :rank], dim=3, dtype=sample.dtype)
        explained = lengths.square()  # (rows, starts, k)
        nearest = labels[:, where].T if rank is None else explained.argmax(2)
        own = torch.nn.functional.one_hot(nearest, k).to(sample.dtype)
        if sample.weights is not None:
            own *= sample.weights[where].view(-1, 1, 1)
        captured += (explained * own).sum((0, 2), dtype=torch.float64)
        shares = coordinates * own.unsqueeze(3).to(block.dtype)
        products += (shares.flatten(1).T @ block).view_as(products)
    return sample.team.sum(products), sample.team.sum(captured)
