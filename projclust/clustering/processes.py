"""Processes that share one fit: each looks at some rows and settles some clusters. Labels, bases and sums travel."""

from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """A torch.distributed process group, or this process alone.

    Attributes:
        group: the process group; None for one process.
        size: number of processes.
        rank: of this one among them.
    """

    group: "dist.ProcessGroup | None" = None
    size: int = 1
    rank: int = 0

    @staticmethod
    def of(group: "dist.ProcessGroup | None") -> "Team":
        """The team of a process group this process belongs to; of this process alone for None."""
        return Team() if group is None else Team(group, dist.get_world_size(group), dist.get_rank(group))

    def share(self, total: int) -> slice:
        """This process's part of `total` things; the parts differ by at most one."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def exchange(self, tensor: Tensor) -> Tensor:
        """Every process's share of the leading dimension, which that process has filled, for all of them; in place."""
        if self.group is not None:
            for rank in range(self.size):
                part = tensor[replace(self, rank=rank).share(len(tensor))]
                dist.broadcast(part, dist.get_global_rank(self.group, rank), group=self.group)
        return tensor
