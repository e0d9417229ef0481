"""`projclust report`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigFile, Debug, OutputFormat
from .output import Format, print_json, print_next, print_rows, quoted


def report(
    folders: Annotated[
        list[str],
        typer.Argument(help="Folders that `projclust glue-eval` wrote.", metavar="DIR", show_default=False),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder of the report (the DIR, if there is one).", metavar="OUT"),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(help="Also write the results into the model card of this compressed folder.", metavar="FOLDER"),
    ] = None,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Merge measurements of one or more runs into tables, plots and a page, and put them into a model card.

    Example: projclust report roberta-base-glue other-run-glue -o both
    """
    from projclust.jobs.report import ReportOptions, report_results
    from projclust.report.terminal import summary_table
    from projclust.report.write import HTML_FILE

    result = report_results(ReportOptions(tuple(folders), output, card))
    if format is Format.JSON:
        print_json(result.as_json())
        return
    for summary in result.summaries:
        print(summary_table(summary) + "\n")
    print_rows([("written", result.output), *([("card", result.card)] if result.card else [])])
    print_next(f"open {quoted(str(Path(result.output) / HTML_FILE))} in a browser")
