"""A product with one of several matrices for each row, in shapes that do not depend on data."""

import torch
from torch import Tensor


def grouped_product(rows: Tensor, groups: Tensor, matrices: Tensor) -> Tensor:
    """(N, d): each of the rows, (N, j), times the matrix of its group, one of (k, j, d); int64 `groups` are (N,).

    The rows are laid out in blocks that each belong to one group, so that one batched product does all. With N // k + 2
    slots a block, at most 2k blocks suffice however the rows are spread: less than twice the work of the groups
    themselves, and the blocks' matrices take no more memory than all of them twice.
    """
    count, k = rows.shape[0], matrices.shape[0]
    size = count // k + 2  # never 1, which export would make a case of its own
    n_blocks = (count + k * (size - 1)) // size
    member = groups.unsqueeze(1) == torch.arange(k, device=groups.device)  # (N, k)
    place_in_group = member.cumsum(0).gather(1, groups.unsqueeze(1)).squeeze(1) - 1
    blocks_of_group = (member.sum(0) + size - 1) // size  # (k,)
    ends = blocks_of_group.cumsum(0)
    slots = (ends - blocks_of_group).index_select(0, groups) * size + place_in_group  # (N,) all different
    blocks = torch.arange(n_blocks, device=groups.device).unsqueeze(1)
    owner = (blocks >= ends).sum(1).clamp(max=k - 1)  # the last blocks may be empty
    laid_out = rows.new_zeros(n_blocks * size, rows.shape[1]).index_copy(0, slots, rows)
    products = laid_out.view(n_blocks, size, rows.shape[1]) @ matrices.index_select(0, owner)
    return products.flatten(0, 1).index_select(0, slots)
