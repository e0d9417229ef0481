"""The processes that share one fit: each holds a shard of the rows, and owns a shard of the clusters.

Labels, bases and sums travel between them; Gram matrices never do.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Collective:
    """A torch.distributed process group of `size` processes, in which this one has the number `rank`, or it alone."""

    group: "dist.ProcessGroup | None" = None
    size: int = 1
    rank: int = 0

    @staticmethod
    def of(group: "dist.ProcessGroup | None") -> "Collective":
        return ALONE if group is None else Collective(group, dist.get_world_size(group), dist.get_rank(group))

    def shard(self, total: int, rank: int | None = None) -> slice:
        """This or another process's part of `total` items; the parts of two processes differ by at most one item."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.size, total * (rank + 1) // self.size)

    def deal(self, rows: Tensor) -> Tensor:
        """This process's share of rows dealt out in turn: consecutive parts of a vocabulary differ, by frequency."""
        return rows[self.rank :: self.size]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Complete a tensor of whose leading dimension every process has filled its own shard; in place."""
        if self.group is not None:
            for rank in range(self.size):
                part = tensor[self.shard(len(tensor), rank)]
                dist.broadcast(part, dist.get_global_rank(self.group, rank), group=self.group)
        return tensor


ALONE = Collective()
