"""The rows of a matrix as the solver reads them: block by block, from wherever they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .processes import Team

# The largest temporary of a block, in bytes. On a CPU a few MB are as fast as many, and the peak memory of a fit stays
# near that of the table; a GPU should be filled, but for what else lives in its memory.
_BLOCK_BYTES_CPU = 4 * 2**20
_BLOCK_BYTES_CUDA = 512 * 2**20
_FEWEST_ROWS = 256

# bfloat16 products get a row's energy in a subspace right to a thousandth of its squared length or so.
_COARSEST = 0.02


@dataclass(frozen=True)
class Rows:
    """This process's rows of a matrix, with what is known of each.

    Attributes:
        table: (n, d) of any float dtype; it may be a memory map, and on another device than the arithmetic.
        norms: (n,) squared length of every row.
        weights: (n,) row weights, or None for ones.
        team: the processes that hold the other rows.
        numbers: (n,) ascending; which of the rows of all processes these are.
        total: number of rows of all processes.
        others: the rows of all processes, as one alone would see them; None for a process alone.
    """

    table: Tensor
    norms: Tensor
    weights: Tensor | None
    team: Team
    numbers: Tensor
    total: int
    others: "Rows | None" = None

    @staticmethod
    def of(
        table: Tensor, weights: Tensor | None = None, device: torch.device | None = None, team: Team | None = None
    ) -> "Rows":
        """This process's share of the rows of `table`, for arithmetic on `device` (default: where the table is).

        Args:
            table: (total, d), the same in every process.
            weights: (total,) row weights, or None.
            device: where to compute; a table that is elsewhere is moved there if there is room, or else block by block.
            team: the processes among which the rows are shared; default: this one alone.
        """
        team = team or Team()
        device = table.device if device is None else device
        dtype = working_dtype(table)
        # Every so many rows: a vocabulary is in the order of frequency, and a part of it unlike another.
        share = slice(team.rank, None, team.size)
        own = table[share]
        if _fits(own, device):
            own = own.to(device)
        all_weights = None if weights is None else weights.to(device, dtype)
        weights = None if all_weights is None else all_weights[share]
        numbers = torch.arange(team.rank, len(table), team.size, device=device)
        rows = Rows(own, torch.empty(len(own), dtype=dtype, device=device), weights, team, numbers, len(table))
        for where, block in rows.blocks(rows.dim):
            rows.norms[where] = block.square().sum(1)
        if team.size == 1:
            return rows
        everybody = torch.arange(len(table), device=device)
        whole = Rows(table, rows.gather(rows.norms), all_weights, Team(), everybody, len(table))
        return replace(rows, others=whole)

    @property
    def whole(self) -> "Rows":
        """The rows of all processes, as one alone sees them: all have the same matrix."""
        return self if self.others is None else self.others

    def reweighted(self, weights: Tensor) -> "Rows":
        """The same rows with other weights (n,)."""
        others = None if self.others is None else replace(self.others, weights=self.gather(weights))
        return replace(self, weights=weights, others=others)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def dim(self) -> int:
        """d, the number of columns."""
        return self.table.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of all arithmetic, see `working_dtype`."""
        return self.norms.dtype

    @property
    def device(self) -> torch.device:
        """Of all arithmetic."""
        return self.norms.device

    def search_dtype(self, left: float) -> torch.dtype:
        """Of products that only choose labels, where what they choose is judged in `dtype`.

        Args:
            left: the share of the rows' energy that subspaces leave; bfloat16 must see differences of it.
        """
        coarse = self.dtype == torch.float32 and left > _COARSEST and fast_bfloat16(self.device)
        return torch.bfloat16 if coarse else self.dtype

    def blocks(
        self, width: int, only: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(where, block)``: consecutive rows, or consecutive ones of ``table[only]``, ready for arithmetic.

        Args:
            width: columns of the caller's largest temporary; it sets the number of rows in a block.
            only: row numbers, on the device of the arithmetic.
            dtype: of the block, if not that of all arithmetic.
        """
        dtype = self.dtype if dtype is None else dtype
        step = max(_FEWEST_ROWS, block_bytes(self.device) // (dtype.itemsize * max(width, self.dim)))
        only = None if only is None else only.to(self.table.device)
        total = len(self) if only is None else len(only)
        for start in range(0, total, step):
            where = slice(start, min(start + step, total))
            block = self.table[where] if only is None else self.table.index_select(0, only[where])
            yield where, block.to(self.device, dtype)

    def weighted(self, block: Tensor, which: slice | Tensor) -> Tensor:
        """The rows of `block`, which are ``table[which]``, times their weights."""
        return block if self.weights is None else block * self.weights[which].unsqueeze(1)

    def per_weight(self, costs: Tensor, which: slice) -> Tensor:
        """(rows, k) costs (k,) of a row by itself as costs of each unit of its weight."""
        if self.weights is None:
            return costs.unsqueeze(0)
        return costs / self.weights[which].clamp(min=torch.finfo(self.dtype).tiny).unsqueeze(1)

    def weighted_sum(self, values: Tensor) -> float:
        """Sum over all rows, those of other processes too, of (n,) values times weights; in float64."""
        exact = values.double()
        total = exact.sum() if self.weights is None else exact @ self.weights.double()
        return float(self.team.sum(total))

    def sample(self, size: int, generator: torch.Generator) -> "Rows":
        """At most `size` rows of all processes, drawn without replacement, on the device of the arithmetic."""
        drawn = torch.randperm(self.total, generator=generator)[:size].sort().values
        numbers, mine = self.own(drawn)
        table = self.table.index_select(0, mine.to(self.table.device)).to(self.device, self.dtype)
        weights = None if self.weights is None else self.weights[mine]
        return Rows(table, self.norms[mine], weights, self.team, numbers, len(drawn))

    def take(self, numbers: Tensor) -> Tensor:
        """(m, d) rows by their numbers among those of all processes."""
        taken = torch.zeros(len(numbers), self.dim, dtype=self.dtype, device=self.device)
        places, mine = self.own(numbers)
        taken[places] = self.table[mine.to(self.table.device)].to(self.device, self.dtype)
        return self.team.sum(taken)

    def own(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which of `numbers`, by their places, are rows of this process, and which rows these are."""
        numbers = numbers.to(self.device)
        found = torch.searchsorted(self.numbers, numbers).clamp_(max=max(len(self) - 1, 0))
        places = (self.numbers[found] == numbers).nonzero().squeeze(1)
        return places, found[places]

    def gather(self, values: Tensor) -> Tensor:
        """(total, ...) values (n, ...) of each row, of the rows of all processes."""
        if self.team.size == 1:
            return values
        size = self.team.size
        dealt = values.new_empty(size, -(-self.total // size), *values.shape[1:])
        dealt[self.team.rank, : len(values)] = values
        # Rows were dealt out in turn.
        return self.team.exchange(dealt).transpose(0, 1).flatten(0, 1)[: self.total]


def working_dtype(table: Tensor) -> torch.dtype:
    """The dtype of all arithmetic on `table`: float64 for a float64 table, float32 for every other."""
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products, with float32 sums, are several times as fast as float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return False  # older releases of torch do not say
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep TF32, which a program may have switched on for its own products, out of the fit's float32 ones."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def block_bytes(device: torch.device) -> int:
    """What the largest temporary should take."""
    if device.type != "cuda":
        return _BLOCK_BYTES_CPU
    return min(_BLOCK_BYTES_CUDA, torch.cuda.mem_get_info(device)[0] // 8)


def _fits(table: Tensor, device: torch.device) -> bool:
    """Whether a copy of the table leaves half of the device's free memory for the fit."""
    return device.type != "cuda" or table.is_cuda or 2 * table.nbytes < torch.cuda.mem_get_info(device)[0]
