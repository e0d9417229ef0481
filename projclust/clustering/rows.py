"""The rows of a matrix as the solver reads them: block by block, from wherever they are.

Processes can share one fit: each holds some of the rows, and owns some of the clusters. Labels, bases and sums travel
between them; Gram matrices never do.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

# The size of the largest temporary of a block, in bytes. On a CPU a few MB are as fast as many, and the peak memory of
# a fit stays near that of the table. A GPU should be filled, but for what else lives in its memory.
_BLOCK_BYTES_CPU = 4 * 2**20
_BLOCK_BYTES_CUDA = 512 * 2**20
_FEWEST_ROWS, _MOST_ROWS = 256, 8192

# A bfloat16 product gets the energy of a row in a subspace right to about a thousandth of the row's squared length.
_COARSEST = 0.02


@dataclass(frozen=True)
class Collective:
    """A torch.distributed process group of `size` processes, in which this one has the number `rank`, or it alone."""

    group: "dist.ProcessGroup | None" = None
    size: int = 1
    rank: int = 0

    @staticmethod
    def of(group: "dist.ProcessGroup | None") -> "Collective":
        """The processes of a group that this process belongs to; for None, this process alone."""
        return ALONE if group is None else Collective(group, dist.get_world_size(group), dist.get_rank(group))

    def shard(self, total: int) -> slice:
        """This process's part of `total` items; the parts of two processes differ by at most one item."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

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
                part = tensor[replace(self, rank=rank).shard(len(tensor))]
                dist.broadcast(part, dist.get_global_rank(self.group, rank), group=self.group)
        return tensor


ALONE = Collective()


@dataclass(frozen=True)
class Rows:
    """This process's share of the rows of a matrix; see `Collective.deal`."""

    table: Tensor  # (n, d) of any float dtype; it may be a memory map, and on another device than the arithmetic
    norms: Tensor  # (n,) the squared length of every row
    weights: Tensor | None  # (n,); None where all are one
    collective: Collective = ALONE  # the processes that hold the other rows
    unsharded: "Rows | None" = None  # the rows of the whole matrix; None where this process has them all

    @staticmethod
    def of(
        table: Tensor, weights: Tensor | None = None, device: torch.device | None = None, collective: Collective = ALONE
    ) -> "Rows":
        """This process's share of the rows of a matrix and their weights, which are the same in every process."""
        device = table.device if device is None else device
        dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        weights = None if weights is None else weights.to(device, dtype)
        own, own_weights = collective.deal(table), None if weights is None else collective.deal(weights)
        # A copy leaves half of the device's free memory for the fit, or else blocks are moved whenever they are read.
        if device.type != "cuda" or own.is_cuda or 2 * own.nbytes < torch.cuda.mem_get_info(device)[0]:
            own = own.to(device)
        norms = torch.empty(len(own), dtype=dtype, device=device)
        rows = Rows(own, norms, own_weights, collective)
        if collective.size > 1:
            rows = replace(rows, unsharded=Rows(table, norms.new_empty(len(table)), weights))
        for where, block in rows.blocks(rows.dim):
            norms[where] = block.square().sum(1)
        rows.whole.norms.copy_(rows.gather(norms))
        return rows

    @property
    def whole(self) -> "Rows":
        """The rows of the whole matrix, which every process can read."""
        return self if self.unsharded is None else self.unsharded

    @property
    def total(self) -> int:
        """The number of rows of the whole matrix."""
        return len(self.whole)

    def reweighted(self, weights: Tensor) -> "Rows":
        """The same rows with other weights (n,)."""
        unsharded = None if self.unsharded is None else replace(self.unsharded, weights=self.gather(weights))
        return replace(self, weights=weights, unsharded=unsharded)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def dim(self) -> int:
        """The number of columns d."""
        return self.table.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all arithmetic: float64 for a float64 table, float32 for every other."""
        return self.norms.dtype

    @property
    def device(self) -> torch.device:
        """The device of all arithmetic."""
        return self.norms.device

    def search_dtype(self, residual: float) -> torch.dtype:
        """The dtype of products that only choose labels, where subspaces leave the share `residual` of the energy."""
        coarse = self.dtype == torch.float32 and residual > _COARSEST and fast_bfloat16(self.device)
        return torch.bfloat16 if coarse else self.dtype

    def blocks(
        self, width: int, only: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(where, block)``: consecutive rows of the table, or of ``table[only]``, ready for arithmetic."""
        # The columns of the caller's largest temporary, `width`, set the number of rows in a block.
        dtype = self.dtype if dtype is None else dtype
        step = max(_FEWEST_ROWS, block_bytes(self.device) // (dtype.itemsize * max(width, self.dim)))
        only = None if only is None else only.to(self.table.device)
        total = len(self) if only is None else len(only)
        for start in range(0, total, step):
            where = slice(start, min(start + step, total))
            block = self.table[where] if only is None else self.table.index_select(0, only[where])
            yield where, block.to(self.device, dtype)

    def weighted(self, values: Tensor, which: slice | Tensor = slice(None)) -> Tensor:
        """(m, ...) values that belong to the rows `which`, by default to all, times the weights of these."""
        return values if self.weights is None else values * self.weights[which].view(-1, *[1] * (values.dim() - 1))

    def weighted_sum(self, values: Tensor) -> float:
        """The sum over the rows of all processes of (n,) values times weights, in float64."""
        exact = values.double()
        total = exact.sum() if self.weights is None else exact @ self.weights.double()
        return float(self.collective.all_reduce(total))

    def sample(self, size: int, generator: torch.Generator) -> "Rows":
        """At most `size` rows of the whole matrix, drawn without replacement and held by this process alone."""
        rows = self.whole
        drawn = torch.randperm(self.total, generator=generator)[:size].sort().values.to(self.device)
        weights = None if rows.weights is None else rows.weights[drawn]
        return Rows(rows.take(drawn), rows.norms[drawn], weights)

    def take(self, which: Tensor) -> Tensor:
        """(m, d) the rows ``table[which]``, ready for arithmetic."""
        return self.table.index_select(0, which.to(self.table.device)).to(self.device, self.dtype)

    def count(self, kinds: Tensor, total: int) -> Tensor:
        """(total,) how often each whole number below `total` occurs in the 1-d tensors `kinds` of all processes."""
        return self.collective.all_reduce(torch.bincount(kinds, minlength=total))

    def gather(self, values: Tensor) -> Tensor:
        """(total, ...) values of every row of the whole matrix, from those (n, ...) of each shard."""
        size = self.collective.size
        if size == 1:
            return values
        dealt = values.new_empty(size, -(-self.total // size), *values.shape[1:])
        dealt[self.collective.rank, : len(values)] = values
        return self.collective.all_gather(dealt).transpose(0, 1).flatten(0, 1)[: self.total]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products, with float32 sums, are several times as fast as float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return False  # older releases of torch do not say
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep TF32, which a program may have switched on for its own work, out of the float32 products of a fit."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield


def rows_at_once(table: Tensor) -> int:
    """How many rows of a table (n, d) to compute with at once in float64, where several temporaries are as large."""
    return min(_MOST_ROWS, max(_FEWEST_ROWS, block_bytes(table.device) // (8 * max(table.shape[1], 1))))


def block_bytes(device: torch.device) -> int:
    """The number of bytes that the largest temporary should take."""
    if device.type != "cuda":
        return _BLOCK_BYTES_CPU
    return min(_BLOCK_BYTES_CUDA, torch.cuda.mem_get_info(device)[0] // 8)
