"""The plots of a report in its text, each with its figures as a table."""

from collections.abc import Iterable, Sequence

from projclust.report.accuracy_plots import Panel, drop_panels, error_panels
from projclust.report.markup import DETAILS_END, details_begin, escaped, table
from projclust.report.phrases import heading, is_trained_further
from projclust.results.summary import Summary

DROP_PLOT, ERROR_PLOT = "drop.png", "error.png"

_TEXTS = {
    DROP_PLOT: "Points lost against the dense model, by task, method and size",
    ERROR_PLOT: "Relative squared error of the embedding, by method and size",
}
_PANELS = {DROP_PLOT: drop_panels, ERROR_PLOT: error_panels}


def plot_with_figures(name: str, summaries: Sequence[Summary]) -> list[str]:
    """A plot that lies beside the report, and what is drawn there as tables that open on demand."""
    parts = [f"![{_TEXTS[name]}]({name})", details_begin("The figures of this plot")]
    for summary in summaries:
        panels = _PANELS[name](summary)
        if panels and len(summaries) > 1:
            parts.append(escaped(heading(summary)))
        if panels:
            parts.append(table(_names(name, summary), list(_lines(name, panels, is_trained_further(summary)))))
    return [*parts, DETAILS_END]


def _names(name: str, summary: Summary) -> list[str]:
    if name == ERROR_PLOT:
        return ["variant", "times smaller", "relative squared error"]
    measured = ["measured"] * is_trained_further(summary)
    return ["task", "variant", "times smaller", *measured, "points lost", "standard error"]


def _lines(name: str, panels: Iterable[Panel], trained: bool) -> Iterable[list[str]]:
    for panel in panels:
        for point in panel.points:
            line = [escaped(point.label), f"{point.times_smaller:.2f}"]
            if name == ERROR_PLOT:
                yield [*line, f"{point.value:.4f}"]
                continue
            error = "" if point.error is None else f"{point.error:.2f}"
            yield [escaped(panel.title), *line, *[point.stage] * trained, f"{point.value:+.2f}", error]
