"""PNG plots."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

# Colours that stay apart for colour-blind readers (Okabe & Ito).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"


def plot_fit(
    path: Path,
    report: dict[str, Any],
    error_by_rank: list[float] | None,
    svd_error_by_rank: list[float],
) -> None:
    """Cost after each step, and error against rank for these clusters and for SVD.

    Args:
        path: the PNG to write.
        report: of the compression.
        error_by_rank: relative squared error of the fitted clusters at every rank from 0; None where it is not known.
        svd_error_by_rank: the same for one subspace of the whole table.
    """
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    history = report["cost_history"]
    left.plot(range(1, len(history) + 1), history, marker="o", color=BLUE)
    left.set(
        title="Cost after each step",
        xlabel="step (the last one is the exact finish)",
        ylabel="weighted squared error" if report["loss"] == "l2" else f"weighted {report['loss']} loss",
    )
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)

    k, j, svd = report["k"], report["j"], report["same_size_svd"]
    least, most = min(report["ranks"]), max(report["ranks"])
    if error_by_rank is not None:
        clusters = f"these {k} clusters" + ", of equal ranks" * (least < most)
        right.plot(error_by_rank, color=BLUE, label=clusters if k > 1 else "one subspace")
    if k > 1 or error_by_rank is None:
        right.plot(svd_error_by_rank, color=ORANGE, label="SVD (one subspace)")
        if svd["j"] is not None:  # of coded SVD its rank is no measure of its size
            label = f"SVD of equal size, rank {svd['j']}"
            right.plot(svd["j"], svd["weighted_relative_error"], "s", color=ORANGE, label=label)
    # Unequal ranks stand where equal ones of as many parameters do.
    stored = f"rank {j}" if least == most else f"ranks {least} to {most}"
    right.plot(j, report["weighted_relative_error"], "o", color=BLUE, label=f"stored, {stored}")
    right.set(title="Error against rank", xlabel="rank", ylabel="relative squared error", ylim=(0, 1))
    right.grid(alpha=0.3)
    right.legend()
    # No timestamp and no version: the same fit gives the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def plot_codes(path: Path, report: dict[str, Any]) -> None:
    """Where the bytes of a coded table go: the code of a row in each class, and what is stored by part.

    Args:
        path: the PNG to write.
        report: of the compression.
    """
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), width_ratios=(3, 2), layout="constrained")
    classes = range(1, len(report["row_bytes"]) + 1)
    left.bar(classes, [8 * count for count in report["row_bytes"]], color=BLUE)
    left.set(
        title="Bits of a row, from the weightiest rows to the lightest",
        xlabel="class of rows (rows in it)",
        ylabel="bits",
    )
    left.set_xticks(
        classes, [f"{number}\n{_short(size)}" for number, size in zip(classes, report["cluster_sizes"], strict=True)]
    )
    left.tick_params(axis="x", labelsize=7)
    left.grid(axis="y", alpha=0.3)

    names = {"weight": "codes of the rows", "decoder": "decoder matrix", "classes": "class ids", "means": "means"}
    parts = sorted(report["parts"].items(), key=lambda part: part[1])
    right.barh(
        [names.get(name, name.replace("_", " ")) for name, _ in parts], [count for _, count in parts], color=BLUE
    )
    right.set(title=f"{report['bytes_stored']:,} bytes stored, by part", xlabel="bytes", xscale="log")
    right.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _short(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.1f}k"
