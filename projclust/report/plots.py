"""Colours and files of all plots, and the plots of one compression."""

from pathlib import Path
from typing import IO

from matplotlib.figure import Figure

from projclust.results.reports import CompressReport

# Colours that stay apart for colour-blind readers (Okabe & Ito).
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
SKY, AMBER, BLACK = "#56B4E9", "#E69F00", "#000000"


def save(figure: Figure, target: Path | IO[bytes], dpi: int = 120) -> None:
    """Write a PNG without timestamp and version, so that the same results give the same file."""
    figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})


def plot_fit(
    path: Path, report: CompressReport, error_by_rank: list[float] | None, svd_error_by_rank: list[float]
) -> None:
    """Cost after each step, and error against rank for these clusters, where it is known, and for SVD.

    The relative squared errors are those at every rank from 0.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    history = report.cost_history or []
    left.plot(range(1, len(history) + 1), history, marker="o", color=BLUE)
    cost = "weighted squared error" if report.loss == "l2" else f"weighted {report.loss} loss"
    left.set(title="Cost after each step", xlabel="step (the last one is the exact finish)", ylabel=cost)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)

    k, j, ranks, svd = report.k or 1, report.j, report.ranks or [], report.same_size_svd
    least, most = min(ranks), max(ranks)
    if error_by_rank is not None:
        clusters = f"these {k} clusters" + ", of equal ranks" * (least < most)
        right.plot(error_by_rank, color=BLUE, label=clusters if k > 1 else "one subspace")
    if k > 1 or error_by_rank is None:
        right.plot(svd_error_by_rank, color=ORANGE, label="SVD (one subspace)")
        if svd is not None and svd.j is not None:  # of coded SVD its rank is no measure of its size
            label = f"SVD of equal size, rank {svd.j}"
            right.plot(svd.j, svd.weighted_relative_error, "s", color=ORANGE, label=label)
    # Unequal ranks stand where equal ones of as many parameters do.
    stored = f"rank {j}" if least == most else f"ranks {least} to {most}"
    right.plot(j, report.weighted_relative_error, "o", color=BLUE, label=f"stored, {stored}")
    right.set(title="Error against rank", xlabel="rank", ylabel="relative squared error", ylim=(0, 1))
    right.grid(alpha=0.3)
    right.legend()
    save(figure, path)


def plot_codes(path: Path, report: CompressReport) -> None:
    """Where the bytes of a coded table go: the code of a row in each class, and what is stored by part."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    row_bytes, cluster_sizes, parts = report.row_bytes or [], report.cluster_sizes or [], report.parts or {}
    classes = range(1, len(row_bytes) + 1)
    left.bar(classes, [8 * count for count in row_bytes], color=BLUE)
    left.set_title("Bits of a row, from the weightiest rows to the lightest")
    left.set(xlabel="class of rows (rows in it)", ylabel="bits")
    sizes = [str(size) if size < 1000 else f"{size / 1000:.1f}k" for size in cluster_sizes]
    left.set_xticks(classes, [f"{number}\n{size}" for number, size in zip(classes, sizes, strict=True)])
    left.tick_params(axis="x", labelsize=7)
    left.grid(axis="y", alpha=0.3)

    titles = {"weight": "codes of the rows", "decoder": "decoder matrix", "classes": "class ids", "means": "means"}
    by_size = sorted(parts.items(), key=lambda part: part[1])
    names = [titles.get(name, name.replace("_", " ")) for name, _ in by_size]
    right.barh(names, [count for _, count in by_size], color=BLUE)
    right.set(title=f"{report.bytes_stored:,} bytes stored, by part", xlabel="bytes", xscale="log")
    right.grid(axis="x", alpha=0.3)
    save(figure, path)
