"""Processes that share one fit: each has some of the rows, and only sums over all rows travel between them."""

from dataclasses import dataclass

import torch
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

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes, of any lengths, one after the other."""
        if self.size == 1:
            return part
        lengths = torch.zeros(self.size, dtype=torch.int64, device=part.device)
        lengths[self.rank] = len(part)
        ends = self.sum(lengths).cumsum(0).tolist()
        # As a sum with zeros, which every backend has for parts of unequal lengths.
        whole = torch.zeros(ends[-1], *part.shape[1:], dtype=part.dtype, device=part.device)
        whole[ends[self.rank] - len(part) : ends[self.rank]] = part
        return self.sum(whole)
