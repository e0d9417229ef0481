"""The commands: each takes its declared options, runs its job, and prints the result. No arithmetic here."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from projclust.checkpoints.source import local_folder, static_part
from projclust.cli.browser import open_page
from projclust.cli.derive import command
from projclust.cli.output import Format, aligned, plain, progress_bar, quoted, show, warn
from projclust.cli.stopping import is_main_process
from projclust.cli.views import (
    cell_line,
    compress_lines,
    expand_lines,
    export_lines,
    inspect_lines,
    plan_lines,
    push_lines,
)
from projclust.jobs.options import (
    CompressOptions,
    ExpandOptions,
    ExportOptions,
    GlueEvalOptions,
    InspectOptions,
    PlanOptions,
    PushOptions,
    ReportOptions,
)
from projclust.onnx_export.needs import require_packages
from projclust.recipes.recipe import RECOMMENDED_BITS
from projclust.results.reports import InspectExportReport, Report
from projclust.results.rows import Row

if TYPE_CHECKING:  # slow to import
    from projclust.jobs.report import Reported


@command
def compress(options: CompressOptions, format: Format) -> None:
    """Compress the word embedding of a model and write a checkpoint that from_pretrained loads.

    Give one of --bits, --size, --ratio and --j. Under torchrun and accelerate launch the processes share the fit of
    subspaces.

    Example: projclust compress roberta-base --bits 0.5

    Example: projclust compress roberta-base --k 5 --j 40
    """
    options.check_folder()
    with progress_bar(f"compressing {options.model}") as bar:
        from projclust.jobs.common import Hooks
        from projclust.jobs.compress import compress_checkpoint

        bar.imported()

        def step(restart: int, step: int, cost: float) -> None:
            if step == 0:
                starts = options.recipe.restarts
                bar.advance(f"fitting: start {restart} of {starts}, cost {cost:.6g}", restart, starts)
            else:
                bar.advance(f"fitting: step {step}, cost {cost:.6g}", step, None)

        def rows(done: int, total: int) -> None:
            bar.advance(f"coding rows: {done:,} of {total:,}", done, total)

        report = compress_checkpoint(options, Hooks(bar.stage, warn, step=step, rows=rows, upload=bar.clear))
    result = quoted(report.output) if options.push_to_hub is None else options.push_to_hub
    next_step = "drop --dry-run to write it" if options.dry_run else f"projclust inspect {result}"
    _print(report, format, compress_lines, next_step)


@command
def plan(options: PlanOptions, format: Format) -> None:
    """Show what sizes of the embedding can be had and what each costs, ours and known ones, and pick one.

    Nothing is written without -o. Errors of coded tables are predicted unless --exact is given.

    Example: projclust plan roberta-base --probe

    Example: projclust plan roberta-base --size 2MB -o roberta-plan
    """
    options.check_folder()
    with progress_bar(f"planning for {options.model}", tells_time=False) as bar:
        from projclust.jobs.common import Hooks
        from projclust.jobs.plan import plan_checkpoint

        bar.imported()
        result = plan_checkpoint(options, Hooks(bar.stage, warn))
    none_fits = "projclust plan with larger --bits: none fits"
    _print(result, format, plan_lines, none_fits if result.pick is None else result.pick.command)


@command
def glue_eval(options: GlueEvalOptions, format: Format) -> None:
    """Fine-tune and score on GLUE: the dense model against compressed ones, with a report.

    The same command again does only what is missing. Runs as it is under torchrun and accelerate launch.

    Example: projclust glue-eval distilbert-base-uncased --tasks cola,mrpc --ratio 0.4
    """
    # Every measurement is a line, so that stages need none.
    with progress_bar(f"measuring {options.model} on GLUE", lines=False) as bar:
        from projclust.jobs.common import Hooks
        from projclust.jobs.glue_eval import evaluate_on_glue

        bar.imported()

        def cell(row: Row, done: int, total: int) -> None:
            bar.log(f"{done}/{total}  {cell_line(row)}")

        def step(step: int, steps: int, loss: float) -> None:
            bar.advance(f"{bar.text}, loss {loss:.4f}", step, steps)

        result = evaluate_on_glue(options, Hooks(bar.stage, warn, step=step, cell=cell))
    card = None if result.card is None else f"projclust report {quoted(result.output)} --card {quoted(result.card)}"
    _print(result, format, _report_lines, card or _open_page(result.output))


@command
def report(options: ReportOptions, format: Format) -> None:
    """Merge measurements of one or more runs into tables, plots and a page, and put them into a model card.

    Example: projclust report roberta-base-glue other-run-glue -o both

    Example: projclust report roberta-base-glue --open
    """
    from projclust.jobs.report import report_results

    result = report_results(options)
    opened = options.open and is_main_process() and open_page(_page(result.output))
    shown = "read the report in the browser, where it is open"
    _print(result, format, _report_lines, shown if opened else _open_page(result.output))


@command
def inspect(options: InspectOptions, format: Format) -> None:
    """Show what a checkpoint holds: shapes, subspaces, bytes by part, error, provenance; or a folder of ONNX files.

    The download is all that programs load of it; of a folder of ONNX files, with the smallest graph.

    Example: projclust inspect roberta-base-projclust
    """
    from projclust.jobs.inspect import inspect_folder

    result, path = inspect_folder(options.path, options.revision), quoted(options.path)
    if isinstance(result, InspectExportReport):
        next_step = f"projclust push {path} REPO" if local_folder(options.path) else "its card shows how to load it"
    elif result.compressed:
        next_step = f"projclust expand {path} -o DIR"
    else:
        next_step = f"projclust compress {path} --bits {RECOMMENDED_BITS:g}"
    _print(result, format, inspect_lines, next_step)


@command
def expand(options: ExpandOptions, format: Format) -> None:
    """Write a compressed checkpoint as a stock dense one that needs no projclust.

    Example: projclust expand roberta-base-projclust -o roberta-base-dense
    """
    options.check_folder()
    with progress_bar(f"expanding {options.path}") as bar:
        from projclust.jobs.expand import expand_checkpoint

        bar.imported()
        bar.stage(f"writing {options.output}")
        result = expand_checkpoint(options)
    load = "AutoModel.from_pretrained" if static_part(Path(result.output)) is None else "SentenceTransformer"
    _print(result, format, expand_lines, f"{load}({result.output!r})")


@command
def export(options: ExportOptions, format: Format) -> None:
    """Write a model as ONNX files whose table stays coded, for onnxruntime, sentence-transformers and transformers.js.

    DIR/onnx holds a graph for each --body, DIR the tokenizer and configs; nothing there needs projclust. The float32
    graph is compared with PyTorch before anything is written. Graphs take any batch and length. There are graphs of
    text models without a head and of those for classification, question answering, masked and causal language
    modelling. Those of causal models read the whole text at every call: generation as transformers.js and optimum do
    it needs graphs that keep keys and values. Needs pip install projclust[onnx].

    Example: projclust export MiniLM-projclust -o MiniLM-onnx --to onnx --body int8
    """
    options.check_folder()
    require_packages()
    with progress_bar(f"exporting {options.model}") as bar:
        from projclust.jobs.common import Hooks
        from projclust.jobs.export import export_checkpoint

        bar.imported()
        result = export_checkpoint(options, Hooks(bar.stage, warn))
    _print(result, format, export_lines, f"{quoted(str(Path(result.output) / 'README.md'))} shows how to load it")


@command
def push(options: PushOptions, format: Format) -> None:
    """Push a checkpoint to a model repository on the Hub, with its card; a second push updates it.

    The token is the one of `hf auth login` or HF_TOKEN.

    Example: projclust push roberta-base-projclust user/roberta-base-projclust
    """
    with progress_bar(f"pushing {options.path}", tells_time=False) as bar:
        from projclust.jobs.push import push_checkpoint

        bar.imported()  # from here on an upload has bars of the Hub client's own
        result = push_checkpoint(options, warn)
    next_step = "drop --dry-run to push it" if options.dry_run else f"projclust inspect {options.repo}"
    _print(result, format, push_lines, next_step)


R = TypeVar("R", bound=Report)


def _print(result: R, format: Format, lines: Callable[[R], Iterable[str]], next_step: str) -> None:
    """A result in the form asked for, by the process that prints."""
    if not is_main_process():
        return
    if format is Format.JSON:
        show(json.dumps(result.as_json(), indent=2))
    else:
        shown = [plain(line) for text in lines(result) for line in text.split("\n")]
        show("\n".join([*shown, "", f"next: {plain(next_step)}"]))


def _report_lines(result: "Reported") -> Iterator[str]:
    from projclust.report.terminal import summary_table  # slow to import

    for summary in result.summaries:
        yield summary_table(summary) + "\n"
    card = [] if result.card is None or result.measured is not None else [("card", result.card)]
    yield from aligned([("written", result.output), *card])


def _page(folder: str) -> Path:
    from projclust.report.write import HTML_FILE  # slow to import

    return Path(folder) / HTML_FILE


def _open_page(folder: str) -> str:
    return f"open {quoted(str(_page(folder)))} in a browser"


COMMANDS = (compress, plan, glue_eval, report, inspect, expand, export, push)
