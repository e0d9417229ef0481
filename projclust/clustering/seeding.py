"""Where projective clustering starts: first labels, and low-rank subspaces settled on a sample of the rows.

Several starts run side by side: their bases, stacked, make one product with each block of rows.
"""

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from .moments import fit_subspaces
from .processes import Team
from .rows import Rows
from .subspaces import Subspaces, assign_rows, orthonormal_rows

_KMEANS_STEPS = 15

# Starts that share their products with the rows. Their number is the same however many processes share the starts, so
# that every start goes the same way in each of them, rounding included.
TOGETHER = 8


class Init(str, Enum):
    """How the first labels are found."""

    SPHERICAL = "spherical"  # k-means on the directions of the rows
    RESIDUAL = "residual"  # one subspace at a time, around rows the earlier ones serve badly
    RANDOM = "random"  # equal random groups, as in the paper


def first_labels(
    init: Init, rows: Rows, n_clusters: int, rank: int, generators: Sequence[torch.Generator], left: float = 0.0
) -> Tensor:
    """(starts, n) int64 labels to start from; drawn on the CPU, so that they are the same on every device.

    Args:
        init: how.
        rows: n of them, all that there are: processes try starts of their own on the same rows.
        n_clusters: k.
        rank: of the subspaces that residual seeding tries.
        generators: of all random choices, one for each start.
        left: the share of energy that one direction leaves, if known: where it is large, a coarse search will do.
    """
    match init:
        case Init.SPHERICAL:
            groups = [generators[first : first + TOGETHER] for first in range(0, len(generators), TOGETHER)]
            found = [labels for group in groups for labels in _spherical_kmeans(rows, n_clusters, group, left)]
        case Init.RESIDUAL:
            found = [_residual_seeding(rows, n_clusters, rank, generator) for generator in generators]
        case Init.RANDOM:
            found = [random_partition(rows, n_clusters, generator) for generator in generators]
    return torch.stack(found) if found else torch.zeros(0, len(rows), dtype=torch.int64, device=rows.device)


def random_partition(rows: Rows, n_clusters: int, generator: torch.Generator) -> Tensor:
    """(n,) random groups whose sizes, over all processes, differ by at most one row."""
    labels = torch.randperm(rows.total, generator=generator) % n_clusters
    return labels.to(rows.device)[rows.numbers]


def _spherical_kmeans(rows: Rows, n_clusters: int, generators: Sequence[torch.Generator], left: float) -> Tensor:
    """k-means on rows scaled to unit length, started with k-means++ (Arthur & Vassilvitskii 2007).

    Only directions count, not lengths: weighing rows by |x|^2, their share of the cost, ended in higher costs.
    """
    n, d, k, starts = len(rows), rows.dim, n_clusters, len(generators)
    scale = rows.norms.clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    dtype = rows.search_dtype(left)
    mass = torch.ones_like(scale) if rows.weights is None else rows.weights
    directions = torch.zeros(starts, k, d, dtype=rows.dtype, device=rows.device)
    spread = torch.ones(n, starts, dtype=rows.dtype, device=rows.device)  # 1 - cosine to the nearest direction so far
    for cluster in range(k):
        seeds = rows.take(_draw(rows, mass.unsqueeze(1) * spread, generators))  # (starts, d)
        directions[:, cluster] = torch.nn.functional.normalize(seeds, dim=1)
        for where, block in rows.blocks(d):
            gap = 1 - (block @ directions[:, cluster].T) * scale[where].unsqueeze(1)
            spread[where] = (gap if cluster == 0 else torch.minimum(spread[where], gap)).clamp_(min=0)

    labels = torch.zeros(starts, n, dtype=torch.int64, device=rows.device)
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
        lengths = sums.norm(dim=2, keepdim=True)
        directions = torch.where(lengths > 0, sums / lengths, directions)
        if int(moved) == 0:
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
        energy, direction = float(product @ direction), product
    return 1 - energy / max(rows.weighted_sum(rows.norms), torch.finfo(rows.dtype).tiny)


def _residual_seeding(rows: Rows, n_clusters: int, rank: int, generator: torch.Generator) -> Tensor:
    """k-means++ for subspaces: each new one is fitted to the neighbours (by angle) of a row drawn by its residual."""
    distances = rows.norms.clone()
    bases: list[Tensor] = []
    group_size = min(rows.total, max(2 * rank, rows.total // n_clusters))
    scale = rows.norms.clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    for _ in range(n_clusters):
        mass = distances if rows.weights is None else distances * rows.weights
        center = rows.take(_draw(rows, mass.unsqueeze(1), [generator])).squeeze(0)
        cosines = torch.empty_like(rows.norms)
        for where, block in rows.blocks(rows.dim):
            cosines[where] = (block @ center) * scale[where]
        nearest = cosines.abs().topk(group_size).values[-1]
        group = torch.where(cosines.abs() >= nearest, 0, 1)
        bases.append(fit_subspaces(rows, group, 1, rank)[0].bases)
        distances = torch.minimum(distances, assign_rows(rows, Subspaces.of(bases[-1])).distances)
    return assign_rows(rows, Subspaces.of(torch.cat(bases))).labels


def _draw(rows: Rows, mass: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """(starts,) numbers of rows drawn by the columns of `mass` (n, starts); uniformly if all 0."""
    cumulative = mass.double().cpu().cumsum(0)
    drawn = []
    for column, generator in zip(cumulative.T, generators, strict=True):
        point = torch.rand((), dtype=torch.float64, generator=generator)
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
    generators: Sequence[torch.Generator],
    left: float = 0.0,
    team: Team | None = None,
) -> tuple[Tensor, Tensor]:
    """Settle the large structure of several starts at low ranks, and keep the best one.

    Low-rank subspaces discriminate between rows that high-rank ones serve equally well. On real tables starting low
    and climbing lowers the final cost more than further starts do. Only the best quarter of each group of starts goes
    on to the last rank, which costs more than all before.

    Args:
        sample: m rows, the same in every process.
        labels: (starts, m) int64, of this process's starts.
        n_clusters: k.
        ranks: ascending.
        generators: of the directions to start from, one for each start of this process.
        left: as for `first_labels`.
        team: the processes that try starts of their own.

    Returns:
        (k, last rank, d) bases of the best start; and (starts,) float64 cost of each of all starts at its last rank.
    """
    team, device = team or Team(), sample.device
    counts = torch.zeros(team.size, dtype=torch.int64, device=device)
    counts[team.rank] = len(labels)
    team.sum(counts)
    first = int(counts[: team.rank].sum())  # the number of this process's first start
    total = sample.weighted_sum(sample.norms)
    costs = torch.zeros(int(counts.sum()), dtype=torch.float64, device=device)
    groups = list(torch.arange(len(labels), device=device).split(TOGETHER)) if len(labels) else []
    bases = [sample.norms.new_empty(len(group), n_clusters, 0, sample.dim) for group in groups]
    for rank in ranks:
        own = costs[first : first + len(labels)].clone()
        costs.zero_()
        for number, group in enumerate(groups):
            if rank == ranks[-1] and len(ranks) > 1:
                kept = own[group].argsort()[: (len(group) + 3) // 4]
                groups[number], bases[number] = group[kept], bases[number][kept]
            drawing = [generators[start] for start in groups[number].tolist()]
            dtype = sample.search_dtype(left)
            bases[number], captured = _settle(sample, bases[number], rank, labels[groups[number]], drawing, dtype)
            own[groups[number]] = total - captured
        costs[first : first + len(labels)] = own
        left = float(team.sum(costs).min()) / max(total, torch.finfo(sample.dtype).tiny)
    best = int(costs.argmin()) - first
    winner = sample.norms.new_zeros(n_clusters, ranks[-1], sample.dim)
    for group, found in zip(groups, bases, strict=True):
        winner += found[group == best].sum(0)
    return team.sum(winner), costs


def _settle(
    sample: Rows,
    bases: Tensor,
    rank: int,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Bases (starts, k, rank, d) from lower-rank ones, or from labels, and the energy that each start captures."""
    _, k, known, d = bases.shape
    shape = (k, rank - known, d)
    more = torch.stack([torch.randn(shape, dtype=sample.dtype, generator=generator) for generator in generators])
    bases = _orthonormal(torch.cat([bases, more.to(sample.device)], 2))
    # The random directions become good ones while the rows stay where the known directions, or the labels, say.
    for compared in [known, rank, rank] if known else [None, None, rank, rank]:
        products, captured = _products(sample, bases, compared, labels, dtype)
        bases = _orthonormal(products)
    return bases, captured


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
    return products, captured
