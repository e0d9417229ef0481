"""The job behind `projclust report`: results.json files in, a report out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projclust.checkpoints.card import CARD_FILE, Measurement, measured_card
from projclust.checkpoints.folder import check_target_name, locked, made
from projclust.checkpoints.save import fingerprint
from projclust.checkpoints.source import CONFIG, quantization_method, read_json
from projclust.errors import ProjclustError
from projclust.jobs.options import ReportOptions
from projclust.report.write import write_report
from projclust.results.files import PARTIAL, replace_file
from projclust.results.reports import Report
from projclust.results.rows import BEST, DEMO, RESULTS_FILE, Row, read_results
from projclust.results.summary import AFTER, Summary, summarize, summary_json


@dataclass(frozen=True)
class Reported(Report):
    """A report in the folder `output`.

    Attributes:
        summaries: what the report says.
        card: the model card that was rewritten; for glue-eval the compressed folder whose card may have the results.
        measured: how many cells glue-eval measured now.
    """

    output: str
    summaries: list[Summary]
    card: str | None
    measured: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return "output", "groups" (see `summary_json`), and "card", or for glue-eval "measured"."""
        own = {"card": self.card} if self.measured is None else {"measured": self.measured}
        return {"output": self.output, **own, "groups": [summary_json(summary) for summary in self.summaries]}


def report_results(options: ReportOptions) -> Reported:
    """Merge the results in some folders and write the report on them."""
    if options.output is None and len(options.folders) > 1:
        raise ProjclustError("several DIRs make one report: say with --output where to write it")
    output = Path(options.folders[0] if options.output is None else options.output)
    for path in (output, *map(Path, options.folders)):
        check_target_name(path)
    try:
        for folder in options.folders:
            if not Path(folder).is_dir():
                raise ProjclustError(f"there is no folder {folder}: DIR is one that `projclust glue-eval` wrote")
        if output.exists() and not output.is_dir():
            raise ProjclustError(f"the output {output} exists and is not a folder: choose another --output")
        # The lock keeps newer results of a running glue-eval from being replaced by those that are read here.
        with made(output), locked(output):
            rows = [row for folder in options.folders for row in read_results(Path(folder) / RESULTS_FILE)]
            _check_output(output, rows)
            card = None if options.card is None else _card(Path(options.card), summarize(rows))
            summaries = write_report(rows, output)
            if card is not None:
                replace_file(card[0], card[1].encode())
    except OSError as error:
        raise ProjclustError(f"cannot use {error.filename or output}: {error.strerror or error}") from error
    return Reported(str(output), summaries, None if card is None else str(card[0]))


def _check_output(output: Path, rows: list[Row]) -> None:
    """Refuse somebody's folder, and one whose measurements would be lost."""
    names = [path.name for path in output.iterdir() if not path.name.endswith(PARTIAL)]
    if not names:
        return
    if RESULTS_FILE not in names:
        raise ProjclustError(f"{output} holds other files and no {RESULTS_FILE}: choose another --output")
    reported = {row.settings_hash for row in rows}
    old = {row.settings_hash for row in read_results(output / RESULTS_FILE) if row.variant != BEST}
    if old - reported:
        raise ProjclustError(
            f"{output} holds results that no DIR has: name it as a DIR too, or choose another --output"
        )


def _card(folder: Path, summaries: list[Summary]) -> tuple[Path, str]:
    """Return where the model card of a compressed checkpoint is, and its text with what was measured of it."""
    if not folder.is_dir():
        raise ProjclustError(f"there is no folder {folder}: --card takes the compressed checkpoint that was measured")
    if quantization_method(read_json(folder / CONFIG)) != "projclust":
        raise ProjclustError(f"{folder} is not compressed by projclust: --card takes a compressed checkpoint")
    sha256 = fingerprint(folder)
    measured = [found for summary in summaries if summary.model_sha256 == sha256 for found in _measurements(summary)]
    if not measured:
        raise ProjclustError(
            f"no DIR has results of {folder}, as it is now, on a task of GLUE: run `projclust glue-eval {folder}` first"
        )
    path = folder / CARD_FILE
    text = path.read_bytes() if path.exists() else b""
    try:
        return path, measured_card(text.decode(), folder.resolve().name, measured)
    except UnicodeDecodeError:
        raise ProjclustError(f"{path} is not UTF-8 text: mend or remove it") from None


def _measurements(summary: Summary) -> list[Measurement]:
    return [
        Measurement(
            task, name, mean.mean, mean.standard_error, mean.seeds, row.validation_rows, row.limit, stage == AFTER
        )
        for task, row in summary.tasks.items()
        if task != DEMO
        for variant in summary.variants
        if variant.method == "compressed" and (task, variant.label) in summary.cells
        for stage, metrics in summary.cells[task, variant.label].metrics.items()
        for name, mean in metrics.items()
    ]
