"""The report's folder: results.json and what is made from it."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from projclust.errors import ProjclustError
from projclust.report.accuracy_plots import plot_drops, plot_errors
from projclust.report.figures import DROP_PLOT, ERROR_PLOT
from projclust.report.html import html_report
from projclust.report.markdown import markdown_report
from projclust.results.files import replace_file
from projclust.results.rows import RESULTS_FILE, Row, write_results
from projclust.results.summary import Summary, summarize

MARKDOWN_FILE, HTML_FILE = "report.md", "report.html"


def write_report(rows: Iterable[Row], folder: Path) -> list[Summary]:
    """Write results.json, report.md, report.html, drop.png and error.png; a plot of nothing is removed.

    Everything is made before the first file is replaced, and each file is replaced whole.
    """
    summaries = summarize(rows)
    if not summaries:
        raise ProjclustError("there are no results to report: run `projclust glue-eval` first")
    plots = {DROP_PLOT: plot_drops(summaries), ERROR_PLOT: plot_errors(summaries)}
    shown = {name: content for name, content in plots.items() if content is not None}
    markdown = markdown_report(summaries, shown)
    html = html_report(markdown, shown)
    write_results([row for summary in summaries for row in summary.rows], folder / RESULTS_FILE)
    for name, content in plots.items():
        if content is not None:
            replace_file(folder / name, content)
        else:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    replace_file(folder / MARKDOWN_FILE, markdown.encode())
    replace_file(folder / HTML_FILE, html.encode())
    return summaries
