"""What to code a table with: how many decoders and coordinates, which codes, chosen before any row is coded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projclust.coding.allocation import allocate
from projclust.coding.classes import ClassedRows, checked_sensitivity, class_statistics
from projclust.coding.codebooks import INTEGER_REACH, KINDS, NONE, distortions, is_integer, largest_integer
from projclust.coding.stored import SideTables, decoder_of_each, stored_decoders
from projclust.errors import ProjclustError
from projclust.shapes import CodedShape

# 3 bits hurt, 8 are not worth their bytes.
DECODER_BITS = 4


@dataclass(frozen=True)
class Design:
    """What a table is to be coded with."""

    side: SideTables  # all that is stored beside the codes
    solvers: Tensor  # (G, d, r) matrices that make coordinates of rows without their class's mean
    inverses: Tensor  # (G, d, r) the same, of such rows in the sensitivity's coordinates
    energies: Tensor  # (C, r) weighted sums of the coordinates' squares over the mean square of the class


def bytes_beside_codes(n: int, d: int, classes: int, rank: int = 1, decoders: int = 1) -> int:
    """What `fit_coded` stores of an n x d table beside any codes."""
    sizes = {"rank": rank, "decoders": decoders, "decoder_bits": DECODER_BITS, "coded": 0, "code_bytes": 0}
    return CodedShape(n, d, classes, affine=True, **sizes).bytes


class Designer:
    """Makes designs for one table, with codes of these kinds, and any budgets."""

    def __init__(self, rows: ClassedRows, sensitivity: Tensor | None, kinds: Sequence[int]) -> None:
        self.sensitivity = checked_sensitivity(sensitivity, rows.table)
        self.statistics = class_statistics(rows, self.sensitivity)
        self.kinds = kinds
        self._bases: dict[int, tuple[Tensor, Tensor]] = {}  # by the number of decoders

    def best(self, budget: int, decoders: int | None = None) -> Design:
        """The design of least error within so many bytes, with so many decoders or as many as are best."""
        count, d = self.statistics.means.shape
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
        count, d = self.statistics.means.shape
        return bytes_beside_codes(sum(self.statistics.rows), d, count, rank=rank, decoders=decoders)

    def _exact(self, decoders: int) -> tuple[Tensor, Tensor]:
        """(G, d, d) decoders, were they stored exactly, and the (C, d) energies of the coordinates they make."""
        if decoders not in self._bases:
            scatter = self.statistics.scatter
            groups = torch.tensor(decoder_of_each(len(scatter), decoders), device=scatter.device)
            sums = scatter.new_zeros(decoders, *scatter.shape[1:]).index_add_(0, groups, scatter)
            # Coordinates by falling energy.
            vectors = torch.linalg.eigh(sums).eigenvectors.flip(2)
            exact = vectors.mT @ torch.linalg.inv(self.sensitivity)
            self._bases[decoders] = exact, self._energies(vectors)
        return self._bases[decoders]

    def _energies(self, inverses: Tensor) -> Tensor:
        scatter = self.statistics.scatter
        own = [inverses[group] for group in decoder_of_each(len(scatter), len(inverses))]
        return torch.stack([(part * (square @ part)).sum(0) for part, square in zip(own, scatter, strict=True)])

    def _best_rank(self, decoders: int, budget: int) -> tuple[float, int] | None:
        """(error, rank) of the least error, were the decoders stored exactly; None where no rank fits the budget."""
        energies = self._exact(decoders)[1]
        distortion = distortions(energies.device)
        total = float(energies.sum())
        best: tuple[float, int] | None = None
        rank = energies.shape[1]
        while rank >= 1:
            fixed = self._fixed_bytes(decoders, rank)
            if fixed > budget:
                rank = rank * 3 // 4  # of 1 that is 0: not even that fits
                continue
            own = energies[:, :rank]
            chosen = allocate(own, self.statistics.rows, self.kinds, budget - fixed).to(own.device)
            error = total - float(own.sum()) + float((own * distortion[chosen.long()]).sum())
            if best is not None and error >= best[0]:
                break
            best = (error, rank)
            # The last coordinates cost a row of the decoder for little: fewer, as long as that helps.
            used = (chosen != NONE).any(0).nonzero()
            rank = min(rank - max(1, rank // 16), 1 + int(used.max()) if len(used) else 1)
        return best

    def _finished(self, decoders: int, rank: int, budget: int) -> Design:
        """The design with the decoders as they will be read."""
        statistics = self.statistics
        read = stored_decoders(self._exact(decoders)[0][:, :rank], DECODER_BITS)
        rows = read.double() @ self.sensitivity
        inverses = torch.linalg.pinv(rows)  # (G, d, r)
        energies = self._energies(inverses)
        importance = energies * rows.square().sum(2)[decoder_of_each(len(energies), decoders)]
        left = budget - self._fixed_bytes(decoders, rank)
        kinds = allocate(importance, statistics.rows, self.kinds, left).to(read.device)
        # Of coordinates without energy rounding may leave less than none.
        deviations = (
            energies.clamp(min=0) * (statistics.squares / statistics.weights.clamp(min=1e-300)).unsqueeze(1)
        ).sqrt()
        for kind in filter(is_integer, set(kinds.unique().tolist())):
            deviations[kinds == kind] *= INTEGER_REACH / largest_integer(KINDS[kind].bits)
        deviations[kinds == NONE] = 0
        side = SideTables(kinds=kinds, deviations=deviations, means=statistics.means, decoders=read)
        return Design(side, solvers=self.sensitivity @ inverses, inverses=inverses, energies=energies)
