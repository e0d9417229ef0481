"""The seeding of projective clustering: initial labels, and low-rank subspaces fitted to a sample of the rows.

Several starts run side by side: their bases are stacked into one product with each block of rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from projclust.clustering.inputs import ClusteringOptions, Progress
from projclust.clustering.rows import ALONE, Collective, Rows
from projclust.clustering.scatter import fit_subspaces
from projclust.clustering.subspaces import Subspaces, assign_rows, orthonormal_rows
from projclust.options import Init

_KMEANS_STEPS = 15

# Every start is fitted to a sample of the rows at these low ranks and judged by its cost there. The best one continues
# with all rows and to full rank.
_RANKS = (1, 4, 16)
_SAMPLE_ROWS = 8192
_SAMPLE_ROWS_PER_CLUSTER = 256

# The number of starts that share their products with the rows. It does not depend on the number of processes, so that
# every start takes the same course in any of them, rounding included.
_STARTS_PER_BATCH = 8


def best_start(rows: Rows, options: ClusteringOptions, generator: torch.Generator, progress: Progress) -> Tensor:
    """(k, r, d) the low-rank bases of the start that is best on a sample of the rows."""
    k, ranks = options.n_clusters, [rank for rank in _RANKS if rank <= options.rank]
    # Every process has the same sample, and starts of its own.
    batches = torch.randint(2**62, (options.restarts,), generator=generator).split(_STARTS_PER_BATCH)
    sample = rows.sample(max(_SAMPLE_ROWS, k * _SAMPLE_ROWS_PER_CLUSTER), generator)
    share = rank_one_residual(sample)
    sample = replace(sample, table=sample.table.to(sample.search_dtype(share)))
    own = batches[rows.collective.shard(len(batches))]
    generators = [torch.Generator().manual_seed(seed) for batch in own for seed in batch.tolist()]
    labels = initial_labels(options.init, sample, k, ranks[-1], generators, share)
    best, costs = successive_halving(sample, labels, k, ranks, generators, share, rows.collective)
    for number, cost in enumerate(costs.tolist(), 1):
        progress(number, 0, cost)
    return best


def initial_labels(
    init: Init, rows: Rows, n_clusters: int, rank: int, generators: Sequence[torch.Generator], residual: float = 0.0
) -> Tensor:
    """(starts, n) int64 labels to start from; random choices are made on the CPU, the same for every device.

    Residual seeding fits subspaces of `rank`. Where one direction leaves a large share `residual` of the energy, low
    precision will do.
    """
    match init:
        case Init.SPHERICAL:
            firsts = range(0, len(generators), _STARTS_PER_BATCH)
            batches = [generators[first : first + _STARTS_PER_BATCH] for first in firsts]
            found = [labels for batch in batches for labels in _spherical_kmeans(rows, n_clusters, batch, residual)]
        case Init.RESIDUAL:
            found = [_residual_seeding(rows, n_clusters, rank, generator) for generator in generators]
        case Init.RANDOM:
            found = [random_partition(rows, n_clusters, generator) for generator in generators]
    return torch.stack(found) if found else torch.zeros(0, len(rows), dtype=torch.int64, device=rows.device)


def random_partition(rows: Rows, n_clusters: int, generator: torch.Generator) -> Tensor:
    """(n,) labels of a random partition into clusters whose sizes, over all processes, differ by at most one."""
    labels = torch.randperm(rows.total, generator=generator) % n_clusters
    return rows.collective.deal(labels.to(rows.device))


def _spherical_kmeans(rows: Rows, n_clusters: int, generators: Sequence[torch.Generator], residual: float) -> Tensor:
    """k-means on rows scaled to unit length, started with k-means++ (Arthur & Vassilvitskii 2007)."""
    n, d, k, starts = len(rows), rows.dim, n_clusters, len(generators)
    # Only directions count, not lengths: weights of |x|^2, the rows' share of the cost, led to higher costs in the end.
    scale = rows.norms.clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    dtype = rows.search_dtype(residual)
    directions = torch.zeros(starts, k, d, dtype=rows.dtype, device=rows.device)
    spread = torch.ones(n, starts, dtype=rows.dtype, device=rows.device)  # 1 - cosine to the nearest direction so far
    for cluster in range(k):
        seeds = rows.take(_draw_rows(rows.weighted(spread), generators))  # (starts, d)
        directions[:, cluster] = torch.nn.functional.normalize(seeds, dim=1)
        for where, block in rows.blocks(d):
            gap = 1 - (block @ directions[:, cluster].T) * scale[where].unsqueeze(1)
            spread[where] = (gap if cluster == 0 else torch.minimum(spread[where], gap)).clamp_(min=0)

    labels = torch.zeros(starts, n, dtype=torch.int64, device=rows.device)
    factor = rows.weighted(scale)  # factor * x is the row's unit vector times its weight
    for _ in range(_KMEANS_STEPS):
        sums = torch.zeros_like(directions)
        moved = torch.zeros((), dtype=torch.int64, device=rows.device)
        compared = directions.flatten(0, 1).to(dtype)
        for where, block in rows.blocks(starts * k, dtype=dtype):
            nearest = (block @ compared.T).view(-1, starts, k).argmax(2)  # (rows, starts)
            moved += (nearest != labels[:, where].T).sum()
            labels[:, where] = nearest.T
            # A product with the one-hot labels instead of index_add_, whose order of summation varies on a GPU.
            shares = torch.nn.functional.one_hot(nearest, k) * factor[where].view(-1, 1, 1)
            sums += (shares.flatten(1).T.to(block.dtype) @ block).view_as(sums)
        lengths = sums.norm(dim=2, keepdim=True)
        directions = torch.where(lengths > 0, sums / lengths, directions)
        if int(moved) == 0:
            break
    return labels


def rank_one_residual(rows: Rows) -> float:
    """The share of the rows' energy that their strongest direction leaves, or a little more, by power iterations."""
    direction = torch.ones(rows.dim, dtype=rows.dtype, device=rows.device)
    energy = 0.0
    for _ in range(3):
        direction = torch.nn.functional.normalize(direction, dim=0)
        product = torch.zeros_like(direction)
        for where, block in rows.blocks(rows.dim):
            product += rows.weighted(block @ direction, where) @ block
        energy, direction = float(product @ direction), product
    return 1 - energy / max(rows.weighted_sum(rows.norms), torch.finfo(rows.dtype).tiny)


def _residual_seeding(rows: Rows, n_clusters: int, rank: int, generator: torch.Generator) -> Tensor:
    """k-means++ for subspaces: each one is fitted to the neighbours, by angle, of a row drawn by its residual."""
    distances = rows.norms.clone()
    bases: list[Tensor] = []
    group_size = min(rows.total, max(2 * rank, rows.total // n_clusters))
    scale = rows.norms.clamp(min=torch.finfo(rows.dtype).tiny).rsqrt()
    for _ in range(n_clusters):
        center = rows.take(_draw_rows(rows.weighted(distances).unsqueeze(1), [generator])).squeeze(0)
        cosines = torch.empty_like(rows.norms)
        for where, block in rows.blocks(rows.dim):
            cosines[where] = (block @ center) * scale[where]
        nearest = cosines.abs().topk(group_size).values[-1]
        group = torch.where(cosines.abs() >= nearest, 0, 1)
        bases.append(fit_subspaces(rows, group, 1, rank)[0].bases)
        distances = torch.minimum(distances, assign_rows(rows, Subspaces.of(bases[-1])).distances)
    return assign_rows(rows, Subspaces.of(torch.cat(bases))).labels


def _draw_rows(mass: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """(starts,) numbers of rows drawn in proportion to each column of `mass` (n, starts); uniformly if it is zero."""
    mass = mass.double().cpu()
    cumulative = torch.where(mass.sum(0) > 0, mass, 1).cumsum(0).T.contiguous()
    points = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    found = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).squeeze(1)
    return found.clamp_(max=len(mass) - 1)


def successive_halving(
    sample: Rows,
    labels: Tensor,
    n_clusters: int,
    ranks: Sequence[int],
    generators: Sequence[torch.Generator],
    residual: float = 0.0,
    collective: Collective = ALONE,
) -> tuple[Tensor, Tensor]:
    """Fit several starts at low ranks, drop the worse ones before the last rank, and keep the best.

    The budgets of successive halving (Jamieson & Talwalkar 2016) are ranks here: the last rank costs more than all
    before, and only the best quarter of each batch of starts goes on to it. Low-rank subspaces tell apart rows that
    high-rank ones serve equally well, and on real tables starting at low ranks gains more than further starts do.
    All processes have the same sample, and initial `labels` (starts, m) and `generators` of their own starts. Returns
    the bases (k, last rank, d) of the best start of all, and the float64 cost of each one at its last rank.
    """
    counts = torch.zeros(collective.size, dtype=torch.int64, device=sample.device)
    counts[collective.rank] = len(labels)
    first = int(collective.all_reduce(counts)[: collective.rank].sum())  # the number of this process's first start
    total = sample.weighted_sum(sample.norms)
    own = torch.zeros(len(labels), dtype=torch.float64, device=sample.device)
    batches = list(torch.arange(len(own), device=own.device).split(_STARTS_PER_BATCH)) if len(own) else []
    bases = [sample.norms.new_empty((len(batch), n_clusters, 0, sample.dim)) for batch in batches]
    for rank in ranks:
        for number, batch in enumerate(batches):
            if rank == ranks[-1] and len(ranks) > 1:
                kept = own[batch].argsort()[: (len(batch) + 3) // 4]
                batch, bases[number] = batch[kept], bases[number][kept]
                batches[number] = batch
            drawing = [generators[start] for start in batch.tolist()]
            dtype = sample.search_dtype(residual)
            bases[number], captured = _fit_at_rank(sample, bases[number], rank, labels[batch], drawing, dtype)
            own[batch] = total - captured
        costs = own.new_zeros(int(counts.sum()))
        costs[first : first + len(own)] = own
        residual = float(collective.all_reduce(costs).min()) / max(total, torch.finfo(sample.dtype).tiny)
    best = int(costs.argmin()) - first
    winner = sample.norms.new_zeros(n_clusters, ranks[-1], sample.dim)
    for batch, found in zip(batches, bases, strict=True):
        winner += found[batch == best].sum(0)
    return collective.all_reduce(winner), costs


def _fit_at_rank(
    sample: Rows, bases: Tensor, rank: int, labels: Tensor, generators: Sequence[torch.Generator], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Raise the rank of bases (starts, k, known, d) by orthogonal iteration, and measure the energy they capture."""
    _, k, known, d = bases.shape
    more = torch.stack([torch.randn(k, rank - known, d, dtype=sample.dtype, generator=own) for own in generators])
    bases = orthonormal_rows(torch.cat([bases, more.to(sample.device)], 2))
    # The first steps keep the assignment by the known directions, or by the labels, while the new ones improve.
    for compared in [known, rank, rank] if known else [None, None, rank, rank]:
        products, captured = _products(sample, bases, compared, labels, dtype)
        bases = orthonormal_rows(products)
    return bases, captured


def _products(
    sample: Rows, bases: Tensor, rank: int | None, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Multiply each basis with the scatter of the rows nearest to its first `rank` directions.

    Where `rank` is None, `labels` (starts, m) assign the rows. Products are in `dtype`, which is enough for a start.
    With them comes the energy (starts,) that the first `rank` directions capture.
    """
    starts, k, r, _ = bases.shape
    products = torch.zeros_like(bases)
    captured = torch.zeros(starts, dtype=torch.float64, device=sample.device)
    bases = bases.flatten(0, 2).to(dtype)
    for where, block in sample.blocks(starts * k * r, dtype=dtype):
        coordinates = (block @ bases.T).view((-1, starts, k, r))
        lengths = torch.linalg.vector_norm(coordinates[..., :rank], dim=3, dtype=sample.dtype)
        explained = lengths.square()  # (rows, starts, k)
        nearest = labels[:, where].T if rank is None else explained.argmax(2)
        own = sample.weighted(torch.nn.functional.one_hot(nearest, k).to(sample.dtype), where)
        captured += (explained * own).sum((0, 2), dtype=torch.float64)
        shares = coordinates * own.unsqueeze(3).to(block.dtype)
        products += (shares.flatten(1).T @ block).view_as(products)
    return products, captured
