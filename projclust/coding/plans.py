"""What to code a table with: how many decoders and coordinates, which codes, chosen before any row is coded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projclust.errors import ProjclustError

from .codebooks import INTEGER_REACH, KINDS, NONE, is_integer, largest_integer
from .moments import Moments
from .rates import allocate
from .stored import CodedShape, SideTables, stored_decoders

# 3 bits hurt, 8 are not worth their bytes.
DECODER_BITS = 4


@dataclass(frozen=True)
class Plan:
    """What a table would be coded with.

    Attributes:
        side: all that is stored beside the codes.
        inverses: (G, d, r) that make coordinates of rows without their class's mean, in the coordinates of the metric.
        energies: (C, r) of the coordinates: weighted sums of squares over the mean square of the class.
    """

    side: SideTables
    inverses: Tensor
    energies: Tensor


class Planner:
    """Plans for one table and any budgets.

    Args:
        moments: of the table.
        metric: (d, d), the one the moments were taken with.
        kinds: of codes to choose from.
    """

    def __init__(self, moments: Moments, metric: Tensor, kinds: Sequence[int]) -> None:
        self.moments = moments
        self.metric = metric
        self.kinds = kinds
        self._bases: dict[int, tuple[Tensor, Tensor]] = {}  # by the number of decoders
        self._distortion = torch.tensor([kind.distortion for kind in KINDS], device=metric.device, dtype=torch.float64)

    def plan(self, budget: int, decoders: int | None = None) -> Plan:
        """The plan of least error within so many bytes, with so many decoders or as many as are best.

        Raises:
            ProjclustError: the budget does not even hold what is stored beside the codes.
        """
        count, d = self.moments.means.shape
        # A decoder that all share, or more where they are cheap beside the codes.
        powers = [1, *(2**p for p in range(1, count.bit_length()) if 2**p * d * d < budget)]
        best: tuple[float, int, int] | None = None
        for number in powers if decoders is None else [decoders]:
            found = self._best_rank(number, budget)
            if best is not None and (found is None or found[0] >= best[0]):
                break  # more of them cost still more
            best = best if found is None else (found[0], number, found[1])
        if best is None:
            fixed = self._fixed_bytes(decoders or 1, 1)
            raise ProjclustError(f"{budget:,} bytes are too few: beside any codes {fixed:,} are stored")
        return self._finished(best[1], best[2], budget)

    def _fixed_bytes(self, decoders: int, rank: int) -> int:
        count, d = self.moments.means.shape
        return CodedShape(sum(self.moments.rows), d, count, rank, decoders, DECODER_BITS, True, 0, 0).bytes

    def _groups(self, decoders: int) -> list[int]:
        """The decoder of each class."""
        count = len(self.moments.means)
        return [number * decoders // count for number in range(count)]

    def _exact(self, decoders: int) -> tuple[Tensor, Tensor]:
        """(G, d, d) decoders, were they stored exactly, and the (C, d) energies of the coordinates they make."""
        if decoders not in self._bases:
            scatter, groups = self.moments.scatter, self._groups(decoders)
            sums = scatter.new_zeros(decoders, *scatter.shape[1:])
            sums.index_add_(0, torch.tensor(groups, device=scatter.device), scatter)
            # Coordinates by falling energy.
            vectors = torch.linalg.eigh(sums).eigenvectors.flip(2)
            energies = self._energies(vectors, groups)
            self._bases[decoders] = (vectors.mT @ torch.linalg.inv(self.metric), energies)
        return self._bases[decoders]

    def _energies(self, inverses: Tensor, groups: list[int]) -> Tensor:
        scatter = self.moments.scatter
        parts = [(inverses[group] * (scatter[c] @ inverses[group])).sum(0) for c, group in enumerate(groups)]
        return torch.stack(parts)

    def _best_rank(self, decoders: int, budget: int) -> tuple[float, int] | None:
        """(error, rank) of the least error, were the decoders stored exactly; None where no rank fits the budget."""
        energies = self._exact(decoders)[1]
        total = float(energies.sum())
        best: tuple[float, int] | None = None
        rank = energies.shape[1]
        while rank >= 1:
            fixed = self._fixed_bytes(decoders, rank)
            if fixed > budget:
                if rank == 1:
                    break
                rank = rank * 3 // 4
                continue
            own = energies[:, :rank]
            chosen = allocate(own, self.moments.rows, self.kinds, budget - fixed).to(own.device)
            error = total - float(own.sum()) + float((own * self._distortion[chosen.long()]).sum())
            if best is not None and error >= best[0]:
                break
            best = (error, rank)
            # The last coordinates cost a row of the decoder for little: fewer, as long as that helps.
            used = (chosen != NONE).any(0).nonzero()
            rank = min(rank - max(1, rank // 16), 1 + int(used.max()) if len(used) else 1)
        return best

    def _finished(self, decoders: int, rank: int, budget: int) -> Plan:
        """The plan with the decoders as they will be read."""
        moments, groups = self.moments, self._groups(decoders)
        read = stored_decoders(self._exact(decoders)[0][:, :rank], DECODER_BITS)
        rows = read.double() @ self.metric
        inverses = torch.linalg.pinv(rows)  # (G, d, r)
        energies = self._energies(inverses, groups)
        importance = energies * rows.square().sum(2)[groups]
        left = budget - self._fixed_bytes(decoders, rank)
        kinds = allocate(importance, moments.rows, self.kinds, left).to(read.device)
        deviations = (energies * (moments.squares / moments.weights.clamp(min=1e-300)).unsqueeze(1)).sqrt()
        for kind in filter(is_integer, set(kinds.unique().tolist())):
            deviations[kinds == kind] *= INTEGER_REACH / largest_integer(kind)
        deviations[kinds == NONE] = 0
        return Plan(SideTables(kinds, deviations, moments.means, read), inverses, energies)
