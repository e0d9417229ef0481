"""What `fit_coded` would reach within a budget of bytes, without coding the table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from projclust.clustering.rows import rows_at_once
from projclust.coding.classes import ClassedRows, ClassStatistics, classes_by_weight, default_classes
from projclust.coding.codebooks import NONE, TRELLIS, distortions
from projclust.coding.design import DECODER_BITS, Design, Designer, bytes_beside_codes
from projclust.coding.encode import widening
from projclust.coding.fit import CodedMatrix, encode_table
from projclust.coding.stored import decoder_of_each
from projclust.errors import ProjclustError


@dataclass(frozen=True)
class Prediction:
    """What a table would be coded with, and what that would leave."""

    bytes: int  # of everything stored
    relative_error: float  # squared error of the rows over the table's squared norm
    weighted_relative_error: float  # the same with the row weights
    rows: ClassedRows
    design: Design


def predict_coded(
    table: Tensor, budgets: Sequence[int], sample_weight: Tensor | None = None, sensitivity: Tensor | None = None
) -> list[Prediction]:
    """What `fit_coded` would reach with the trellis codes, for each of several budgets of bytes.

    The codes are taken for Gaussian test channels: a coordinate with variance v and distortion D (of its kind of code)
    is read as (1 - D) of itself and noise of variance D (1 - D) v. On tables of hundreds of columns the errors are
    within a few per cent of those of the codes themselves, and far cheaper; short rows are coded worse than predicted.
    The errors are those of the table's own coordinates, whatever the sensitivity.
    """
    rows = classes_by_weight(table, sample_weight, None)
    designer = Designer(rows, sensitivity, TRELLIS)
    statistics = designer.statistics
    norms = _norms(rows.table)
    unweighted = _unweighted(rows, statistics)
    found = []
    for budget in budgets:
        design = designer.best(budget)
        errors = _errors(design, statistics, designer.sensitivity)
        prediction = Prediction(
            bytes=design.side.shape(statistics.rows, DECODER_BITS).bytes,
            relative_error=_ratio((errors * unweighted).sum(), norms.sum()),
            weighted_relative_error=_ratio(errors.sum(), rows.weights.cpu() @ norms),
            rows=rows,
            # As large as the solvers, and of no more use.
            design=replace(design, inverses=design.inverses.new_empty(0)),
        )
        found.append(prediction)
    return found


def code_rows(prediction: Prediction, ids: Tensor) -> CodedMatrix:
    """Code some rows of the table, of these numbers (N,), nearly as `fit_coded` would code them among all others.

    By how much codes shrink a class is measured on the given rows only, so deviations may differ by a per cent or two.
    """
    rows, design = prediction.rows, prediction.design
    if not torch.equal(ids, torch.arange(len(rows.table), device=ids.device)):  # of all rows no copy is made
        rows = replace(rows, table=rows.table[ids], ids=rows.ids[ids], weights=rows.weights[ids])
    return encode_table(rows, design.side, design.solvers, DECODER_BITS)


def least_bytes(n: int, d: int) -> int:
    """What `fit_coded` stores of an n x d table beside any codes, at least."""
    return bytes_beside_codes(n, d, default_classes(n))


def check_budget(budget: int, n: int, d: int) -> None:
    """Refuse a size that codes cannot have, with an error that says what they need."""
    least = least_bytes(n, d)
    if budget < least:
        bits = 8 * least / (n * d)
        raise ProjclustError(f"{budget:,} bytes are too few: at least {least:,} ({bits:.3f} bits a weight) are needed")
    if budget >= 4 * n * d:
        raise ProjclustError(f"{budget:,} bytes are too many: coded tables take less than 32 bits a weight")


def _norms(table: Tensor) -> Tensor:
    """(n,) float64 on the CPU: the squared length of each row."""
    norms, size = torch.empty(len(table), dtype=torch.float64), rows_at_once(table)
    for block, into in zip(table.split(size), norms.split(size), strict=True):
        into.copy_(block.double().square().sum(1))
    return norms


def _unweighted(rows: ClassedRows, statistics: ClassStatistics) -> Tensor:
    """(C,) by how much the energy of each class's rows without their mean is larger where every row weighs one."""
    sums = torch.zeros(rows.count, 2, dtype=torch.float64, device=rows.table.device)
    for number, block in rows.blocks():
        energy = (rows.table[block].double() - statistics.means[number]).square().sum(1)
        sums[number, 0] += energy.sum()
        sums[number, 1] += rows.weights[block] @ energy
    return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp(min=1e-300), torch.ones_like(sums[:, 0]))


def _ratio(error: Tensor, norm: Tensor) -> float:
    return float(error) / float(norm) if norm > 0 else 0.0


def _errors(design: Design, statistics: ClassStatistics, sensitivity: Tensor) -> Tensor:
    """(C,) the weighted sum of squared errors that a design leaves in each class, without the sensitivity."""
    kinds, decoders = design.side.kinds, design.side.decoders.double()
    lost, energies = distortions(sensitivity.device)[kinds.long()], design.energies  # (C, r)
    coded = kinds != NONE
    gains = widening((energies * coded).sum(1), (energies * (1 - lost) * coded).sum(1)).unsqueeze(1)  # (C, 1)
    inverse = torch.linalg.inv(sensitivity)
    errors = torch.zeros(len(kinds), dtype=torch.float64, device=sensitivity.device)
    for number, group in enumerate(decoder_of_each(len(kinds), len(decoders))):
        kept = gains[number] * (1 - lost[number])  # (r,) of a coordinate, on average
        # A row y in the sensitivity's coordinates, without its mean, keeps an error of y @ left and the codes' noise.
        left = inverse - (design.inverses[group] * kept) @ decoders[group]  # (d, d)
        noise = gains[number] ** 2 * lost[number] * (1 - lost[number]) * energies[number]
        errors[number] = ((statistics.scatter[number] @ left) * left).sum() + noise @ decoders[group].square().sum(1)
    return errors * statistics.squares
