"""Where projective clustering starts: a first label for every row."""

from enum import Enum

import torch
from torch import Tensor

from .subspaces import Subspaces, assign_rows, fit_subspaces, row_blocks, working_dtype

_KMEANS_STEPS = 15


class Init(str, Enum):
    """How the first labels are found."""

    SPHERICAL = "spherical"  # k-means on the directions of the rows
    RESIDUAL = "residual"  # one subspace at a time, around rows the earlier ones serve badly
    RANDOM = "random"  # equal random groups, as in the paper


def first_labels(
    init: Init,
    table: Tensor,
    norms: Tensor,
    weights: Tensor | None,
    n_clusters: int,
    rank: int,
    generator: torch.Generator,
) -> Tensor:
    """(n,) int64 labels to start from; `generator` lives on the CPU, so that the draw is the same on every device."""
    match init:
        case Init.SPHERICAL:
            return _spherical_kmeans(table, norms, weights, n_clusters, generator)
        case Init.RESIDUAL:
            return _residual_seeding(table, norms, weights, n_clusters, rank, generator)
        case Init.RANDOM:
            return random_partition(len(table), n_clusters, generator).to(table.device)


def random_partition(n_rows: int, n_clusters: int, generator: torch.Generator) -> Tensor:
    """Random groups whose sizes differ by at most one row."""
    return torch.randperm(n_rows, generator=generator) % n_clusters


def _spherical_kmeans(
    table: Tensor, norms: Tensor, weights: Tensor | None, n_clusters: int, generator: torch.Generator
) -> Tensor:
    """k-means on rows scaled to unit length, started with k-means++ (Arthur & Vassilvitskii 2007).

    Only directions count, not lengths: weighing rows by |x|^2, their share of the cost, ended in higher costs.
    """
    scale = norms.clamp(min=torch.finfo(norms.dtype).tiny).rsqrt()
    mass = torch.ones_like(norms) if weights is None else weights.to(norms.dtype)
    directions = torch.empty(n_clusters, table.shape[1], dtype=norms.dtype, device=table.device)
    spread = torch.full_like(norms, torch.inf)  # 1 - cosine to the nearest direction so far
    for cluster in range(n_clusters):
        row = _draw(mass if cluster == 0 else mass * spread, generator)
        directions[cluster] = table[row].to(norms.dtype) * scale[row]
        for where, block in row_blocks(table, table.shape[1]):
            gap = 1 - (block @ directions[cluster]) * scale[where]
            spread[where] = torch.minimum(spread[where], gap).clamp_(min=0)

    labels = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    share = mass * scale  # share * x is the row's unit vector times its weight
    for _ in range(_KMEANS_STEPS):
        sums = torch.zeros_like(directions)
        moved = 0
        for where, block in row_blocks(table, table.shape[1]):
            nearest = (block @ directions.T).argmax(1)
            moved += int((nearest != labels[where]).sum())
            labels[where] = nearest
            # A product with the one-hot labels instead of index_add_, whose order of summation varies on a GPU.
            one_hot = torch.nn.functional.one_hot(nearest, n_clusters).to(block.dtype)
            sums += (one_hot * share[where].unsqueeze(1)).T @ block
        lengths = sums.norm(dim=1, keepdim=True)
        directions = torch.where(lengths > 0, sums / lengths, directions)
        if moved == 0:
            break
    return labels


def _residual_seeding(
    table: Tensor,
    norms: Tensor,
    weights: Tensor | None,
    n_clusters: int,
    rank: int,
    generator: torch.Generator,
) -> Tensor:
    """k-means++ for subspaces: each new one is fitted to the neighbours (by angle) of a row drawn by its residual."""
    distances = norms.clone()
    fitted: list[Subspaces] = []
    group_size = min(len(table), max(2 * rank, len(table) // n_clusters))
    scale = norms.clamp(min=torch.finfo(norms.dtype).tiny).rsqrt()
    for _ in range(n_clusters):
        row = _draw(distances if weights is None else distances * weights.to(distances.dtype), generator)
        center = table[row].to(working_dtype(table))
        cosines = torch.empty_like(norms)
        for where, block in row_blocks(table, table.shape[1]):
            cosines[where] = (block @ center) * scale[where]
        group = cosines.abs().topk(group_size).indices
        group_weights = None if weights is None else weights[group]
        one = torch.zeros(group_size, dtype=torch.int64, device=table.device)
        fitted.append(fit_subspaces(table[group], group_weights, one, 1, rank, affine=False))
        distances = torch.minimum(distances, assign_rows(table, norms, fitted[-1])[1])
    together = Subspaces(torch.cat([one.bases for one in fitted]), None, torch.cat([one.spectra for one in fitted]))
    return assign_rows(table, norms, together)[0]


def _draw(mass: Tensor, generator: torch.Generator) -> int:
    """One row number, drawn with probability proportional to `mass` (uniformly when there is none)."""
    cumulative = mass.double().cpu().cumsum(0)
    point = torch.rand((), dtype=torch.float64, generator=generator)
    if cumulative[-1] <= 0:
        return int(point * len(mass))
    return min(int(torch.searchsorted(cumulative, point * cumulative[-1], right=True)), len(mass) - 1)
