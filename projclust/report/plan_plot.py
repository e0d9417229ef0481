"""The PNG of a plan: what each recipe costs at every size."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from projclust.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, save
from projclust.results.reports import PlanReport, PlanRow

# Recipes of one family share a colour; what a marker is of, the legend tells.
_STYLES = {
    "auto": (BLUE, "o", "auto (projclust compress --bits)"),
    "svd-int4": (ORANGE, "s", "SVD, int4"),
    "pq": (GREEN, "D", "product quantization"),
    "projective": (PURPLE, "P", "5 subspaces, 40% off"),
    "other": (GREY, "^", "rounding"),
}
_JOINED = ("auto", "svd-int4", "pq")
_LEAST_LOSS = 1e-6


def plot_plan(path: Path, plan: PlanReport) -> None:
    """Error against size for every recipe of a plan, and where outputs were probed 1 - cosine against size."""
    probed = any(row.cosine is not None for row in plan.rows)
    figure = Figure(figsize=(12 if probed else 7.5, 5), layout="constrained")
    axes = figure.subplots(1, 1 + probed, squeeze=False)
    weighted = plan.weights != "uniform"
    errors = [(row, row.weighted_relative_error) for row in plan.rows]
    _draw(axes[0, 0], errors, hollow=True)
    predicted = any(row.predicted for row in plan.rows)
    axes[0, 0].set(
        title="Error of the table" + " (hollow: predicted)" * predicted,
        ylabel="relative squared error" + ", rows weighted" * weighted,
    )
    if probed:
        losses = [(row, 1 - row.cosine) for row in plan.rows if row.cosine is not None]
        _draw(axes[0, 1], losses, hollow=False)
        axes[0, 1].set(title="Error of the model's outputs", ylabel="1 - mean cosine to the dense model's")
    axes[0, 0].legend(fontsize=8, loc="lower left")
    figure.suptitle(f"{plan.n:,} x {plan.d} embedding, {plan.bytes_dense / 1e6:,.1f} MB dense", fontsize=10)
    save(figure, path)


def _draw(axis: Axes, points: list[tuple[PlanRow, float]], hollow: bool) -> None:
    """Points of each family in its colour; with `hollow`, empty where all of a family are predicted."""
    series: dict[str, list[tuple[int, float, PlanRow]]] = {}
    for row, value in points:
        family = next((name for name in _STYLES if row.recipe.startswith(name)), "other")
        series.setdefault(family, []).append((row.bytes, max(value, _LEAST_LOSS), row))
    for family, places in series.items():
        colour, marker, label = _STYLES[family]
        places.sort(key=lambda place: place[0])
        sizes, values, rows = zip(*places, strict=True)
        fill = "white" if hollow and all(row.predicted for row in rows) else colour
        line = "-" if family in _JOINED else "none"
        axis.plot(sizes, values, marker=marker, linestyle=line, color=colour, markerfacecolor=fill, label=label)
        for size, value, row in places:
            if family == "auto":
                text = f"{row.bits_per_weight:.2f} bits"
            elif family in _JOINED:
                continue
            else:
                text = row.recipe.removeprefix("projective-")
            # Away from the other recipes: ours lie below them, and int4 and nf4 close together.
            place, side = ((-5, -10), "right") if family == "auto" or text == "nf4" else ((6, 4), "left")
            axis.annotate(text, (size, value), place, textcoords="offset points", ha=side, fontsize=7, color=colour)
    axis.set(xscale="log", yscale="log", xlabel="stored bytes of the embedding")
    axis.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(_size))
    axis.margins(x=0.12)
    axis.grid(alpha=0.3)


def _size(value: float, _: object = None) -> str:
    return f"{value / 1e6:g} MB" if value >= 1e6 else f"{value / 1e3:g} KB"
