"""The processes that share one fit: each holds a shard of the rows, and owns a shard of the clusters.

Labels, bases and sums travel between them; Gram matrices never do.
"""

from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Collective:
    """A torch.distributed process group, or this process alone.

    Attributes:
        group: the process group; None for a single process.
        size: the number of processes.
        rank: the number of this process among them.
    """

    group: "dist.ProcessGroup | None" = None
    size: int = 1
    rank: int = 0

    @staticmethod
    def of(group: "dist.ProcessGroup | None") -> "Collective":
        """The processes of a group that this process belongs to; for None, this process alone."""
        return Collective() if group is None else Collective(group, dist.get_world_size(group), dist.get_rank(group))

    def shard(self, total: int) -> slice:
        """This process's part of `total` items; the parts of two processes differ by at most one item."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Complete a tensor of whose leading dimension every process has filled its own shard; in place."""
        if self.group is not None:
            for rank in range(self.size):
                part = tensor[replace(self, rank=rank).shard(len(tensor))]
                dist.broadcast(part, dist.get_global_rank(self.group, rank), group=self.group)
        return tensor
