"""Fitting a coded table within a budget of bytes: classes of rows, their bases, bits, codes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from projclust.clustering.estimator import as_table
from projclust.errors import ProjclustError

from .codebooks import INT4, INT8, NONE, SCALAR, TRELLIS, largest_integer
from .decode import unit_coordinates, windows_of
from .encode import encode_rows
from .moments import bands, checked_metric, checked_weights, default_classes, moments_of, row_blocks
from .plans import DECODER_BITS, Planner
from .stored import (
    MOST_CLASSES,
    STEPS_PER_OCTAVE,
    CodedShape,
    SideTables,
    store_classes,
    store_side_tables,
    stored_decoders,
    stored_means,
)

Progress = Callable[[int, int], None]


class Coder(str, Enum):
    """The codes that `fit_coded` chooses from."""

    TRELLIS = "trellis"
    SCALAR = "scalar"


_KINDS_OF = {Coder.TRELLIS: TRELLIS, Coder.SCALAR: SCALAR}


@dataclass(frozen=True)
class CodedMatrix:
    """A coded table.

    Attributes:
        shape: its sizes.
        stored: every stored tensor by name.
        classes: (n,) of the rows.
        ranks: coordinates with codes in each class.
        row_bytes: of the codes of a row of each class.
    """

    shape: CodedShape
    stored: dict[str, Tensor]
    classes: Tensor
    ranks: list[int]
    row_bytes: list[int]


def fit_coded(
    table: Tensor,
    budget: int,
    sample_weight: Tensor | None = None,
    metric: Tensor | None = None,
    coder: Coder = Coder.TRELLIS,
    classes: int | None = None,
    decoders: int | None = None,
    progress: Progress | None = None,
) -> CodedMatrix:
    """Code a table in at most `budget` bytes, everything counted.

    Rows are classed by their weight (of equal weight, by their length), each class with its own mean, its own spread
    and its own bits for every coordinate. What is minimised is the weighted sum of the rows' squared errors, each
    relative to its class's mean square, in the coordinates that `metric` makes.

    Args:
        table: (n, d) of any float dtype.
        budget: bytes.
        sample_weight: (n,) how much each row's relative error counts; default: all one.
        metric: (d, d) symmetric positive definite M; an error e counts as |e M|^2. Default: the identity.
        coder: the codes to choose from.
        classes: how many, at most 256; default: as the table's size warrants.
        decoders: matrices that make rows of coordinates; class c of C has number c * decoders // C. Default: as many
            as promise the smallest error within the budget.
        progress: called with rows encoded so far and in all.

    Raises:
        ProjclustError: the budget does not even hold what is stored beside the codes; NaN or infinity in the table;
            weights or a metric that are none; more classes, or decoders for them, than there can be.
    """
    table = as_table(table)
    n, d = table.shape
    weight = checked_weights(sample_weight, n)
    count = default_classes(n) if classes is None else classes
    if not 1 <= count <= MOST_CLASSES:
        raise ProjclustError(f"coded tables have 1 to {MOST_CLASSES} classes, not {count}")
    if decoders is not None and not 1 <= decoders <= count:
        raise ProjclustError(f"{count} classes have 1 to {count} decoders, not {decoders}")
    ids = bands(table, weight, count)
    metric = checked_metric(metric, d).to(table.device)
    plan = Planner(moments_of(table, ids, weight, metric, count), metric, _KINDS_OF[coder]).plan(budget, decoders)
    return encode_table(table, ids, plan.side, metric @ plan.inverses, DECODER_BITS, weight, progress)


def code_clusters(
    table: Tensor,
    labels: Tensor,
    bases: Tensor,
    means: Tensor | None,
    ranks: list[int],
    codes: str,
    progress: Progress | None = None,
) -> CodedMatrix:
    """Code a table that was clustered into subspaces: coefficients and bases as integers.

    Args:
        table: (n, d).
        labels: (n,) cluster of each row.
        bases: (k, j, d) orthonormal rows, j the largest rank.
        means: (k, d) or None for linear subspaces.
        ranks: of each cluster.
        codes: "int8" or "int4", of the coefficients; each coordinate of each cluster has its own step.
        progress: as `fit_coded`.

    Raises:
        ProjclustError: there are more clusters than classes can be numbered.
    """
    k, rank, _ = bases.shape
    if k > MOST_CLASSES:
        raise ProjclustError(f"coded tables have at most {MOST_CLASSES} clusters, not {k}")
    kind = {"int8": INT8, "int4": INT4}[codes]
    device = table.device
    bases = bases.to(device).float()
    kinds = torch.zeros(k, rank, dtype=torch.uint8, device=device)
    for cluster, own in enumerate(ranks):
        kinds[cluster, :own] = kind
        bases[cluster, own:] = 0
    offsets = None if means is None else stored_means(means.to(device).float())
    # The coefficients are solved for the means and bases as they will be read.
    decoders = stored_decoders(bases, 8)
    solvers = torch.linalg.pinv(decoders.double())  # (k, d, j)
    steps = torch.zeros(k, rank, device=device)
    labels = labels.to(device).long()
    for cluster, block in row_blocks(labels, k):
        found = (_without_mean(table[block].double(), offsets, cluster) @ solvers[cluster]).abs().amax(0).float()
        steps[cluster] = torch.maximum(steps[cluster], found / largest_integer(kind))
    # Stored steps are rounded: up, lest they do not reach the largest coefficient.
    side = SideTables(kinds, steps * (kinds != NONE) * 2 ** (0.5 / STEPS_PER_OCTAVE), offsets, decoders)
    return encode_table(table, labels, side, solvers, 8, None, progress)


def encode_table(
    table: Tensor,
    ids: Tensor,
    side: SideTables,
    solvers: Tensor,
    decoder_bits: int,
    weight: Tensor | None,
    progress: Progress | None,
) -> CodedMatrix:
    """Code all rows; with weights, each class's deviations are then widened by half of what its codes shrink it.

    Args:
        ids: (n,) class of each row.
        side: what is stored beside the codes.
        solvers: (G, d, r) that make coordinates of a row without its class's mean.
        decoder_bits: of the decoders' entries.
        weight: (n,) of the rows.
        progress: as `fit_coded`.
    """
    (n, d), count, device = table.shape, len(side.kinds), table.device
    stored, read = store_side_tables(side, decoder_bits)
    layouts = read.layouts()
    windows = windows_of(layouts, side.kinds.shape[1], device)
    groups = [number * len(solvers) // count for number in range(count)]
    energy = torch.zeros(count, 2, dtype=torch.float64, device=device)  # of what was to be coded, and of the codes
    codes, done = [], 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, n)

    for number, block in row_blocks(ids, count):
        layout = layouts[number]
        left = _without_mean(table[block].double(), read.means, number)
        coordinates = (left @ solvers[groups[number]]).float()
        part = encode_rows(coordinates, read.deviations[number], layout, advance)
        codes.append(part.flatten())
        if weight is not None:
            starts = torch.arange(len(block), device=device) * layout.row_bytes
            same = torch.full_like(starts, number)
            decoded = unit_coordinates(codes[-1], windows, starts, same) * read.deviations[number]
            own = weight[block.cpu()].to(device)
            coded = read.kinds[number] != NONE
            energy[number, 0] += own @ coordinates[:, coded].double().square().sum(1)
            energy[number, 1] += own @ decoded.double().square().sum(1)
    if weight is not None:
        lost = (energy[:, 0] / energy[:, 1].clamp(min=1e-300)).clamp(1, 4)
        gains = (0.5 + 0.5 * lost).sqrt().where(energy[:, 1] > 0, torch.ones_like(lost))
        stored, _ = store_side_tables(
            replace(read, deviations=read.deviations * gains.float().unsqueeze(1)), decoder_bits
        )
    stored |= {"weight": torch.cat(codes), **store_classes(ids, count)}
    kinds = side.kinds
    used, code_bytes, affine = int((kinds != NONE).sum()), len(stored["weight"]), side.means is not None
    shape = CodedShape(n, d, count, kinds.shape[1], len(solvers), decoder_bits, affine, used, code_bytes)
    return CodedMatrix(shape, stored, ids, (kinds != NONE).sum(1).tolist(), [layout.row_bytes for layout in layouts])


def _without_mean(rows: Tensor, means: Tensor | None, number: int) -> Tensor:
    return rows if means is None else rows - means[number].double()
