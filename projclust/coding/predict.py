"""What `fit_coded` would reach within a budget of bytes, without coding the table."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projclust.clustering.estimator import as_table
from projclust.errors import ProjclustError

from .codebooks import KINDS, NONE, TRELLIS
from .fit import CodedMatrix, encode_table
from .moments import Moments, bands, checked_metric, checked_weights, default_classes, moments_of, row_blocks
from .plans import DECODER_BITS, Plan, Planner
from .stored import CodedShape, SideTables

# The least and the most that a class's codes are taken to shrink its energy, as in `fit_coded`.
_LEAST_LOST, _MOST_LOST = 1.0, 4.0


@dataclass(frozen=True)
class Prediction:
    """What a table would be coded with, and what that would leave.

    Attributes:
        bytes: of everything stored.
        relative_error: squared error of the rows over the table's squared norm.
        weighted_relative_error: the same with the row weights.
        classes: (n,) of the rows.
        side: what is stored beside the codes.
        solvers: (G, d, r) that make coordinates of a row without its class's mean.
    """

    bytes: int
    relative_error: float
    weighted_relative_error: float
    classes: Tensor
    side: SideTables
    solvers: Tensor

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each entry of the table."""
        return 8 * self.bytes / (len(self.classes) * self.side.decoders.shape[2])


def predict_coded(
    table: Tensor, budgets: Sequence[int], sample_weight: Tensor | None = None, metric: Tensor | None = None
) -> list[Prediction]:
    """What `fit_coded` would reach with the trellis codes, for each of several budgets.

    The codes are taken for Gaussian test channels: a coordinate with variance v and distortion D (of its kind of code)
    is read as (1 - D) of itself and noise of variance D (1 - D) v. On tables of hundreds of columns the errors are
    within a few per cent of those of the codes themselves, and far cheaper; short rows are coded worse than predicted.

    Args:
        table, sample_weight, metric: as `fit_coded`.
        budgets: bytes.

    Returns:
        a prediction for each budget. Its errors are of the table's own coordinates, whatever the metric.

    Raises:
        ProjclustError: `fit_coded`'s.
    """
    table = as_table(table)
    n, d = table.shape
    weight = checked_weights(sample_weight, n)
    count = default_classes(n)
    ids = bands(table, weight, count)
    metric = checked_metric(metric, d).to(table.device)
    moments = moments_of(table, ids, weight, metric, count)
    planner = Planner(moments, metric, TRELLIS)
    norms = torch.cat([rows.double().square().sum(1) for rows in table.split(4096)]).cpu()
    unweighted = _unweighted(table, moments, ids, weight)
    found = []
    for budget in budgets:
        plan = planner.plan(budget)
        errors = _errors(plan, moments, metric)
        plain = errors * unweighted
        found.append(
            Prediction(
                _bytes(plan.side, moments.rows, n),
                _ratio(float(plain.sum()), float(norms.sum())),
                _ratio(float(errors.sum()), float(weight @ norms)),
                ids,
                plan.side,
                metric @ plan.inverses,
            )
        )
    return found


def code_rows(prediction: Prediction, table: Tensor, rows: Tensor, sample_weight: Tensor | None = None) -> CodedMatrix:
    """Code some rows of the table, nearly as `fit_coded` would code them among all others.

    By how much codes shrink a class is measured on the given rows only, so deviations may differ by a per cent or two.

    Args:
        prediction: for this table.
        table: (n, d).
        rows: (N,) their numbers.
        sample_weight: (n,) as it was for the prediction.
    """
    weight = checked_weights(sample_weight, len(table))
    classes = prediction.classes[rows]
    return encode_table(
        table[rows], classes, prediction.side, prediction.solvers, DECODER_BITS, weight[rows.cpu()], None
    )


def least_bytes(n: int, d: int) -> int:
    """What `fit_coded` stores of an n x d table beside any codes, at least."""
    return CodedShape(n, d, default_classes(n), 1, 1, DECODER_BITS, True, 0, 0).bytes


def check_budget(budget: int, n: int, d: int) -> None:
    """Refuse a size that codes cannot have.

    Raises:
        ProjclustError: saying what they need.
    """
    least = least_bytes(n, d)
    if budget < least:
        bits = 8 * least / (n * d)
        raise ProjclustError(f"{budget:,} bytes are too few: at least {least:,} ({bits:.3f} bits a weight) are needed")
    if budget >= 4 * n * d:
        raise ProjclustError(f"{budget:,} bytes are too many: coded tables take less than 32 bits a weight")


def _unweighted(table: Tensor, moments: Moments, ids: Tensor, weight: Tensor) -> Tensor:
    """(C,) by how much the energy of each class's rows without their mean is larger where every row weighs one."""
    sums = torch.zeros(len(moments.means), 2, dtype=torch.float64, device=table.device)
    for number, block in row_blocks(ids, len(moments.means)):
        energy = (table[block].double() - moments.means[number]).square().sum(1)
        sums[number, 0] += energy.sum()
        sums[number, 1] += weight.to(table.device)[block] @ energy
    return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp(min=1e-300), torch.ones_like(sums[:, 0]))


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm > 0 else 0.0


def _bytes(side: SideTables, rows: list[int], n: int) -> int:
    decoders, rank, d = side.decoders.shape
    code_bytes = sum(count * layout.row_bytes for count, layout in zip(rows, side.layouts(), strict=True))
    used = int((side.kinds != NONE).sum())
    return CodedShape(n, d, len(rows), rank, decoders, DECODER_BITS, True, used, code_bytes).bytes


def _errors(plan: Plan, moments: Moments, metric: Tensor) -> Tensor:
    """(C,) the weighted sum of squared errors that a plan leaves in each class, without the metric."""
    kinds, decoders = plan.side.kinds, plan.side.decoders.double()
    count = len(kinds)
    distortion = torch.tensor([kind.distortion for kind in KINDS], dtype=torch.float64, device=metric.device)
    lost = distortion[kinds.long()]  # (C, r)
    gains = _gains(plan.energies, lost, kinds != NONE)
    inverse_metric = torch.linalg.inv(metric)
    errors = torch.zeros(count, dtype=torch.float64, device=metric.device)
    for number in range(count):
        group = number * len(decoders) // count
        kept = gains[number] * (1 - lost[number])  # (r,) of a coordinate, on average
        # A row y in the metric's coordinates, without its mean, keeps an error of y @ left and of the codes' noise.
        left = inverse_metric - (plan.inverses[group] * kept) @ decoders[group]  # (d, d)
        noise = gains[number] ** 2 * lost[number] * (1 - lost[number]) * plan.energies[number]
        errors[number] = ((moments.scatter[number] @ left) * left).sum() + noise @ decoders[group].square().sum(1)
    return errors * moments.squares


def _gains(energies: Tensor, lost: Tensor, coded: Tensor) -> Tensor:
    """(C, 1) that widen the deviations of each class by half of what its codes shrink it."""
    before = (energies * coded).sum(1)
    after = (energies * (1 - lost) * coded).sum(1)
    ratio = (before / after.clamp(min=1e-300)).clamp(_LEAST_LOST, _MOST_LOST)
    return (0.5 + 0.5 * ratio).sqrt().where(after > 0, torch.ones_like(ratio)).unsqueeze(1)
