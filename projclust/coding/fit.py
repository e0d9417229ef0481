"""Fitting a coded table within a budget of bytes: classes of rows, their bases, bits, codes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from projclust.clustering.inputs import as_ordinary
from projclust.coding.classes import ClassedRows, classes_by_weight
from projclust.coding.codebooks import NONE, NUMBER_OF, SCALAR, TRELLIS, largest_integer
from projclust.coding.decode import unit_coordinates, windows_of
from projclust.coding.design import DECODER_BITS, Designer
from projclust.coding.encode import encode_rows, widening
from projclust.coding.stored import (
    STEPS_PER_OCTAVE,
    SideTables,
    decoder_of_each,
    scaled,
    store_classes,
    store_side_tables,
    stored_decoders,
    stored_means,
)
from projclust.errors import ProjclustError
from projclust.options import Choice, Codes
from projclust.shapes import MOST_CLASSES, CodedShape

Progress = Callable[[int, int], None]


class Coder(Choice):
    """The codes that `fit_coded` chooses from."""

    TRELLIS = "trellis"
    SCALAR = "scalar"


@dataclass(frozen=True)
class CodedMatrix:
    """A coded table."""

    shape: CodedShape
    stored: dict[str, Tensor]  # every tensor by its name in the file
    classes: Tensor  # (n,) the class of each row
    ranks: list[int]  # the number of coordinates with codes in each class
    row_bytes: list[int]  # the bytes of a row's codes in each class


def fit_coded(
    table: Tensor,
    budget: int,
    sample_weight: Tensor | None = None,
    sensitivity: Tensor | None = None,
    coder: Coder = Coder.TRELLIS,
    classes: int | None = None,
    decoders: int | None = None,
    progress: Progress | None = None,
) -> CodedMatrix:
    """Code a table in at most `budget` bytes, everything counted.

    Rows are classed by their weight (of equal weight, by their length), each class with its own mean, its own spread
    and its own bits for every coordinate. What is minimised is the weighted sum of the rows' squared errors, each
    relative to its class's mean square, in the coordinates that `sensitivity` makes. Bits are allotted by reverse
    water-filling (Cover and Thomas, "Elements of Information Theory", section 10.3.3).

    Args:
        table: (n, d) of any float dtype.
        budget: bytes.
        sample_weight: (n,) how much each row's relative error counts; default: all one.
        sensitivity: (d, d) symmetric positive definite M; an error e counts as |e M|^2. Default: the identity.
        coder: the codes to choose from.
        classes: how many, at most 256; default: as the table's size warrants.
        decoders: matrices that make rows of coordinates; class c of C has number c * decoders // C. Default: as many
            as promise the smallest error within the budget.
        progress: called with rows encoded so far and in all.

    Raises:
        ProjclustError: the budget does not even hold what is stored beside the codes; NaN or infinity in the table;
            weights or a sensitivity that are none; more classes, or decoders for them, than there can be.

    Example::

        coded = fit_coded(table, budget=table.numel() // 4, sample_weight=counts)  # two bits for each entry
        assert coded.shape.bytes <= table.numel() // 4
    """
    rows = classes_by_weight(table, sample_weight, classes)
    if decoders is not None and not 1 <= decoders <= rows.count:
        raise ProjclustError(f"{rows.count} classes have 1 to {rows.count} decoders, not {decoders}")
    kinds = {Coder.TRELLIS: TRELLIS, Coder.SCALAR: SCALAR}[coder]
    design = Designer(rows, sensitivity, kinds).best(budget, decoders)
    return encode_table(rows, design.side, design.solvers, DECODER_BITS, progress=progress)


def code_clusters(
    table: Tensor,
    labels: Tensor,
    *,
    bases: Tensor,
    means: Tensor | None,
    ranks: list[int],
    codes: str,
    progress: Progress | None = None,
) -> CodedMatrix:
    """Code a table that was clustered into subspaces: coefficients and bases as integers.

    Args:
        table: (n, d).
        labels: (n,) the cluster of each row.
        bases: (k, j, d) orthonormal rows, j the largest rank.
        means: (k, d) or None for linear subspaces.
        ranks: the rank of each cluster.
        codes: the integers of `Codes` that the coefficients become; each coordinate of each cluster has its own step.
        progress: see `fit_coded`.

    Raises:
        ProjclustError: there are more clusters than classes can be numbered, or the codes are no integers.

    Example::

        coded = code_clusters(table, labels, bases=bases, means=None, ranks=[64] * 5, codes="int8")
    """
    k, rank, _ = bases.shape
    if k > MOST_CLASSES:
        raise ProjclustError(f"coded tables have at most {MOST_CLASSES} clusters, not {k}")
    bits = Codes.of(codes, "codes").bits
    if bits is None:
        raise ProjclustError(f"clusters are coded in integers, not {codes}")
    table, exponent = as_ordinary(table)
    device = table.device
    used = torch.arange(rank, device=device) < torch.tensor(ranks, device=device).unsqueeze(1)  # (k, j)
    bases = bases.to(device, torch.float32).masked_fill(~used.unsqueeze(2), 0)
    offsets = None if means is None else stored_means((means.to(device).double() * 2.0**-exponent).float())
    # The coefficients are solved for the means and bases as they will be read.
    decoders = stored_decoders(bases, 8)
    solvers = torch.linalg.pinv(decoders.double())  # (k, d, j)
    steps = torch.zeros(k, rank, device=device)
    equal = torch.ones(len(table), dtype=torch.float64, device=device)
    rows = ClassedRows(table=table, ids=labels.to(device).long(), count=k, weights=equal, exponent=exponent)
    for cluster, block in rows.blocks():
        found = (_without_mean(table[block].double(), offsets, cluster) @ solvers[cluster]).abs().amax(0).float()
        steps[cluster] = torch.maximum(steps[cluster], found / largest_integer(bits))
    # Stored steps are rounded: up, lest they do not reach the largest coefficient.
    steps = steps * used * 2 ** (0.5 / STEPS_PER_OCTAVE)
    side = SideTables(kinds=used.to(torch.uint8) * NUMBER_OF[codes], deviations=steps, means=offsets, decoders=decoders)
    return encode_table(rows, side, solvers, 8, widen=False, progress=progress)


def encode_table(
    rows: ClassedRows,
    side: SideTables,
    solvers: Tensor,
    decoder_bits: int,
    widen: bool = True,
    progress: Progress | None = None,
) -> CodedMatrix:
    """Code all rows, whose coordinates `solvers`, (G, d, r), make of what is left of them without their class's mean.

    With `widen` each class's deviations grow by half of what its codes shrink it, measured with the weights.
    """
    count, device = rows.count, rows.table.device
    stored, read = store_side_tables(side, decoder_bits)
    layouts = read.layouts()
    windows = windows_of(layouts, side.kinds.shape[1], device)
    groups = decoder_of_each(count, len(solvers))
    energy = torch.zeros(count, 2, dtype=torch.float64, device=device)  # before and after coding
    shape = side.shape(torch.bincount(rows.ids, minlength=count).tolist(), decoder_bits)
    codes, start, done = torch.empty(shape.code_bytes, dtype=torch.uint8, device=device), 0, 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(rows.table))

    for number, block in rows.blocks():
        layout = layouts[number]
        left = _without_mean(rows.table[block].double(), read.means, number)
        coordinates = (left @ solvers[groups[number]]).float()
        own = encode_rows(coordinates, read.deviations[number], layout, advance).flatten()
        codes[start : start + len(own)] = own
        start += len(own)
        if widen:
            starts = torch.arange(len(block), device=device) * layout.row_bytes
            decoded = unit_coordinates(own, windows, starts, torch.full_like(starts, number)) * read.deviations[number]
            for place, values in enumerate((coordinates[:, read.kinds[number] != NONE], decoded)):
                energy[number, place] += rows.weights[block] @ values.double().square().sum(1)
    if widen:
        wider = read.deviations * widening(energy[:, 0], energy[:, 1]).float().unsqueeze(1)
        stored, _ = store_side_tables(replace(read, deviations=wider), decoder_bits)
    if rows.exponent:
        stored = scaled(stored, rows.exponent)
    stored |= {"weight": codes, **store_classes(rows.ids, count)}
    ranks = (side.kinds != NONE).sum(1).tolist()
    return CodedMatrix(shape, stored, rows.ids, ranks, [layout.row_bytes for layout in layouts])


def _without_mean(rows: Tensor, means: Tensor | None, number: int) -> Tensor:
    return rows if means is None else rows - means[number].double()
