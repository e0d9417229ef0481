"""PNG plots of accuracy and error against size. What they show is settled by plain functions, then drawn."""

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from projclust.report.phrases import average_title, heading, is_trained_further, marks, plain, task_title
from projclust.report.plots import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, save
from projclust.results.rows import BEST
from projclust.results.summary import AFTER, BEFORE, DENSE, Score, Summary, Variant

_COLOURS = {"projective": BLUE, "svd": ORANGE, "random": GREY, "compressed": GREEN, BEST: PURPLE}
# For the others, and where a method has several kinds.
_MORE_COLOURS = (SKY, AMBER, GREEN, BLACK, PURPLE, GREY, ORANGE, BLUE)
_MARKERS = "os^Dvp"
_COLUMNS = 4
# Sizes that differ by less than this factor are drawn side by side, not on an axis of sizes.
_SAME_SIZE = 1.15
# What the label of a size takes of an axis.
_LABEL_WIDTH = 0.13
# On such an axis, points of one size are moved apart by this part of its length.
_STEP = 0.015
_LETTERS_PER_INCH = 11
_SLANTED = {"rotation": 30, "ha": "right"}
_DENSE_LINE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}


@dataclass(frozen=True)
class Point:
    """One point of a plot."""

    series: str  # what a line joins and the legend names: the method and its kind
    label: str  # of the variant
    times_smaller: float
    stage: str  # "before" (hollow) or "after" (filled) further training
    value: float  # points lost, or relative error
    error: float | None  # its standard error


@dataclass(frozen=True)
class Panel:
    """One small plot."""

    title: str
    points: list[Point]
    dense_change: float | None = None  # points the dense model lost by its own further training (negative: won)
    diverged: int = 0  # how many seeds of all variants are missing


def drop_panels(summary: Summary) -> list[Panel]:
    """Points lost against dense: a panel a task, then the averages; empty where dense was not measured."""
    panels = []
    for task, row in summary.tasks.items():
        cells = summary.of_task(task)
        sizes = {label: cell.times_smaller for label, cell in cells.items()}
        scores = {label: cell.scores for label, cell in cells.items()}
        diverged = sum(cell.diverged for cell in cells.values())
        panels.append(Panel(task_title(row), _drops(summary, sizes, scores), _change(summary, scores), diverged))
    sizes = {variant.label: variant.times_smaller for variant in summary.variants}
    for average in summary.averages:
        drops = _drops(summary, sizes, average.scores)
        panels.append(Panel(average_title(summary, average), drops, _change(summary, average.scores)))
    return [panel for panel in panels if panel.points]


def error_panels(summary: Summary) -> list[Panel]:
    """Relative error of the compressed embeddings, as far as it is known."""
    points = [
        Point(_series(variant), variant.label, variant.times_smaller, AFTER, variant.relative_error, None)
        for variant in summary.variants
        if variant.variant != DENSE and variant.relative_error is not None
    ]
    return [Panel("", points)] if points else []


def _drops(summary: Summary, sizes: Mapping[str, float], scores: Mapping[str, Mapping[str, Score]]) -> list[Point]:
    return [
        Point(_series(variant), variant.label, sizes[variant.label], stage, score.drop.mean, score.drop.standard_error)
        for variant in summary.variants
        for stage, score in scores.get(variant.label, {}).items()
        if score.drop is not None
    ]


def _change(summary: Summary, scores: Mapping[str, Mapping[str, Score]]) -> float | None:
    stages = scores.get(summary.dense or "", {})
    return stages[BEFORE].score.mean - stages[AFTER].score.mean if len(stages) == 2 else None


def _method(variant: Variant) -> str:
    return BEST if variant.variant == BEST else variant.method


def _series(variant: Variant) -> str:
    codes = f", {variant.codes}" if variant.codes not in (None, "float32") else ""
    return f"{_method(variant)}{', affine' * variant.affine}{codes}"


def plot_drops(summaries: Sequence[Summary]) -> bytes | None:
    """The PNG of `drop_panels`, a block of them for each summary; None if there is nothing to show."""
    return _figure(summaries, drop_panels, "Drop against the dense model", "points lost (up is worse)")


def plot_errors(summaries: Sequence[Summary]) -> bytes | None:
    """The PNG of `error_panels`; None if there is nothing to show."""
    return _figure(summaries, error_panels, "Error of the embedding when compressed", "relative squared error")


def _figure(
    summaries: Sequence[Summary], panels_of: Callable[[Summary], list[Panel]], title: str, quantity: str
) -> bytes | None:
    blocks = [(summary, panels) for summary in summaries if (panels := panels_of(summary))]
    if not blocks:
        return None
    columns = min(_COLUMNS, max(len(panels) for _, panels in blocks))
    heights = [math.ceil(len(panels) / columns) for _, panels in blocks]
    size = (max(7.0, 3.1 * columns), 2.6 * sum(heights) + 1.7 * len(blocks))
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(len(blocks), 1, height_ratios=[height + 0.5 for height in heights], squeeze=False)[:, 0]
    for part, (summary, panels), height in zip(parts, blocks, heights, strict=True):
        _draw_block(part, part.subplots(height, columns, squeeze=False), summary, panels, quantity)
        texts = map(_literal, (title, heading(summary), _caption(summary, panels)))
        lines = [line for text in texts for line in textwrap.wrap(text, int(_LETTERS_PER_INCH * size[0]))]
        part.suptitle("\n".join(lines), fontsize="medium")
    content = io.BytesIO()
    save(figure, content, dpi=110)
    return content.getvalue()


def _caption(summary: Summary, panels: Sequence[Panel]) -> str:
    points = [point for panel in panels for point in panel.points]
    seeds = "one seed, no standard error" if len(summary.seeds) == 1 else f"mean of {len(summary.seeds)} seeds"
    bars = ", bars: standard error" * any(point.error is not None for point in points)
    apart = [] if _same_size(points) else ["points of equal size are drawn side by side"]
    return "; ".join([seeds + bars, *apart, *marks(summary)])


def _draw_block(part: Any, axes: Any, summary: Summary, panels: Sequence[Panel], quantity: str) -> None:
    points = [point for panel in panels for point in panel.points]
    series = list(dict.fromkeys(point.series for point in points))
    styles = {
        name: (colour, _MARKERS[index % len(_MARKERS)])
        for index, (name, colour) in enumerate(_colours(series, summary).items())
    }
    trained = is_trained_further(summary)
    place = _places(points)
    for axis, panel in itertools.zip_longest(axes.flat, panels):
        if panel is None:
            axis.set_axis_off()
            continue
        for name, stage in itertools.product(series, (BEFORE, AFTER)):
            colour, marker = styles[name]
            own = sorted((p for p in panel.points if (p.series, p.stage) == (name, stage)), key=place)
            x, y = [place(point) for point in own], [point.value for point in own]
            errors = [point.error or 0.0 for point in own]
            hollow = stage == BEFORE and trained
            fill = "white" if hollow else colour
            line = "none" if _same_size(points) else ":" if hollow else "-"
            axis.errorbar(x, y, errors, color=colour, marker=marker, markerfacecolor=fill, linestyle=line, capsize=2)
        if any(point.stage == BEFORE for point in panel.points) and panel.dense_change is not None:
            axis.axhline(panel.dense_change, **_DENSE_LINE)
        axis.axhline(0, color="black", linewidth=1)
        _label_axis(axis, points)
        diverged = f"\n{panel.diverged} diverged" if panel.diverged else ""
        axis.set_title(panel.title + diverged, fontsize="small")
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel(quantity, fontsize="small")
    columns = 2 if axes.shape[1] < 3 else 4
    part.legend(handles=_legend(styles, panels, trained), loc="outside lower center", ncols=columns, fontsize="small")


def _same_size(points: Sequence[Point]) -> bool:
    sizes = [point.times_smaller for point in points]
    return max(sizes) < _SAME_SIZE * min(sizes)


def _places(points: Sequence[Point]) -> Callable[[Point], float]:
    """Where a point is on the x axis, so that no two of a panel are at the same place."""
    stages = [stage for stage in (BEFORE, AFTER) if any(point.stage == stage for point in points)]
    if _same_size(points):
        labels = list(dict.fromkeys(point.label for point in points))
        return lambda point: labels.index(point.label) + 0.2 * (stages.index(point.stage) - (len(stages) - 1) / 2)
    slots = list(itertools.product(dict.fromkeys(point.series for point in points), stages))
    sizes = [point.times_smaller for point in points]
    step, middle = (max(sizes) / min(sizes)) ** _STEP, (len(slots) - 1) / 2
    return lambda point: point.times_smaller * step ** (slots.index((point.series, point.stage)) - middle)


def _label_axis(axis: Any, points: Sequence[Point]) -> None:
    sizes = sorted({point.times_smaller for point in points})
    if _same_size(points):
        names = {point.label: point.series for point in points}
        distinct = len(set(names.values())) == len(names)
        # Colour and marker tell the method already.
        texts = [_literal(name if distinct else label.partition(", ")[2] or name) for label, name in names.items()]
        axis.set_xticks(range(len(names)), texts, fontsize="small", **({} if distinct else _SLANTED))
        axis.set_xlim(-0.5, len(names) - 0.5)
        low, high = f"{sizes[0]:.2f}", f"{sizes[-1]:.2f}"
        axis.set_xlabel(f"embedding {low if low == high else f'{low} to {high}'} times smaller", fontsize="small")
        return
    ticks = [sizes[0]]
    apart = max(_SAME_SIZE, (sizes[-1] / sizes[0]) ** _LABEL_WIDTH)
    for size in sizes:
        if size > apart * ticks[-1]:
            ticks.append(size)
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize="small")
    axis.minorticks_off()
    axis.set_xlabel("embedding, times smaller (log scale)", fontsize="small")


def _colours(series: Sequence[str], summary: Summary) -> dict[str, str]:
    """A colour for each series: its method's own, unless another series has it, and as long as there are colours."""
    methods = {_series(variant): _method(variant) for variant in summary.variants}
    found: dict[str, str] = {}
    for name in series:
        free = [
            colour
            for colour in (_COLOURS.get(methods[name]), *_MORE_COLOURS)
            if colour and colour not in found.values()
        ]
        found[name] = free[0] if free else BLACK
    return found


def _legend(styles: Mapping[str, tuple[str, str]], panels: Sequence[Panel], trained: bool) -> list[Any]:
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in styles.items()]
    if trained and any(point.stage == BEFORE for panel in panels for point in panel.points):
        grey: dict[str, Any] = {"color": GREY, "marker": "o", "linestyle": "none"}
        handles += [Line2D([], [], markerfacecolor="white", label="before, against dense before", **grey)]
        handles += [Line2D([], [], label="after, against dense after", **grey)]
        if any(panel.dense_change is not None for panel in panels):
            handles += [Line2D([], [], label="dense after, against dense before", **_DENSE_LINE)]
    return handles


def _literal(text: str) -> str:
    """Text in which matplotlib sees no formula, in letters that its font has."""
    return plain(text).encode("ascii", "replace").decode().replace("$", r"\$")
