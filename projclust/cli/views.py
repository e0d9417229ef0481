"""Results as people read them on a terminal."""

from collections.abc import Iterator

from projclust.cli.output import aligned, megabytes
from projclust.recipes.recipe import RECOMMENDED
from projclust.results.reports import (
    CompressReport,
    DownloadPart,
    ExpandReport,
    ExportReport,
    HowCompressed,
    InspectExportReport,
    InspectReport,
    PlanReport,
    PushReport,
    ScriptErrors,
    StoredGraph,
    script_text,
)
from projclust.results.rows import Row


def method_text(result: CompressReport | HowCompressed) -> str:
    """How a table is compressed."""
    if result.codes == "auto":
        if result.ranks is None:
            return f"{result.method}, codes auto"
        return f"{result.method}, {result.k} classes of rows, up to {max(result.ranks)} coordinates"
    text = f"{result.method}, k={result.k}, j={result.j}" + ", affine" * result.affine
    if result.ranks is None:
        text += ", adaptive ranks"
    elif min(result.ranks) < max(result.ranks):
        text += f", ranks {min(result.ranks)} to {max(result.ranks)}"
    return text if result.loss == "l2" else f"{text}, loss {result.loss}"


def compress_lines(report: CompressReport) -> list[str]:
    """What `projclust compress` prints."""
    at_most = "at most " * (report.ranks is None)
    parameters = f"{report.params_dense:,}"
    if report.codes == "auto":
        if report.params_stored is not None:
            parameters += f" -> {report.params_stored:,} that have a code"
    else:
        parameters += f" -> {at_most}{report.params_stored:,} (compression rate {report.compression_rate:.4f})"
    stored = f"{megabytes(report.bytes_dense)} -> {at_most}{megabytes(report.bytes_stored)}"
    times = f"{report.bytes_dense / report.bytes_stored:.1f}x smaller"
    rows = [
        ("embedding", f"{report.embedding}, {report.n:,} x {report.d}"),
        ("method", method_text(report)),
        ("parameters", parameters),
        ("embedding in file", f"{stored} ({times}, {report.bits_per_weight:.2f} bits per weight, {report.codes})"),
        ("all weights", f"{megabytes(report.model_bytes_dense)} -> {at_most}{megabytes(report.model_bytes_stored)}"),
        *_body_rows(report),
        *([] if report.weights_chosen is None else [("row weights", report.weights_chosen)]),
        *(("stays dense", f"{part.name}, {megabytes(part.bytes)}: {part.reason}") for part in report.dense_parts),
    ]
    svd, steps = report.same_size_svd, report.iterations
    if svd is not None:
        error = f"{report.relative_error:.4f}"
        if report.weights != "uniform":
            error += f", weighted {report.weighted_relative_error:.4f}"
        svd_error = "weighted " * (report.weights != "uniform") + f"{svd.weighted_relative_error:.4f}"
        took = "" if steps is None else f", {steps} step" + "s" * (steps > 1)
        rows += [
            ("relative error", f"{error} (SVD of equal size, {svd.codes}: {svd_error})"),
            *_script_rows(report.errors_by_script),
            *_outputs_rows(report),
            ("fit", f"{report.fit_seconds:.1f} s on {report.device}{took}"),
            ("written", report.output),
        ]
    if report.pushed_to is not None:
        rows.append(("pushed to", report.pushed_to))
    return aligned(rows)


def _outputs_rows(report: CompressReport) -> list[tuple[str, str]]:
    """How near the outputs are to the dense model's."""
    if report.output_kl is not None:
        return [("outputs", f"KL divergence of the next token {report.output_kl:.4f}, on text of the model's own")]
    if report.output_cosine is not None:
        return [("outputs", f"cosine {report.output_cosine:.4f} to the dense model's, on random tokens")]
    return []


def _body_rows(report: CompressReport) -> list[tuple[str, str]]:
    """What became of the weights beside the table."""
    if report.dtype is not None:
        return [("body", f"stored as {report.dtype}")]
    if report.body is None:
        return []
    if report.body_bytes_dense is None or report.body_bytes_stored is None:
        return [("body", report.body)]
    size = f"{megabytes(report.body_bytes_dense)} -> {megabytes(report.body_bytes_stored)}"
    return [("body", f"{report.body}, {size}, relative error {report.body_relative_error:.2g}")]


def _script_rows(errors: dict[str, ScriptErrors] | None) -> list[tuple[str, str]]:
    text = script_text(errors)
    return [] if text is None else [("by script", text)]


def expand_lines(result: ExpandReport) -> list[str]:
    """What `projclust expand` prints."""
    sizes = megabytes(result.model_bytes_stored), megabytes(result.model_bytes_dense)
    return aligned([("all weights", f"{sizes[0]} -> {sizes[1]}"), ("written", result.output)])


def export_lines(result: ExportReport) -> list[str]:
    """What `projclust export` prints."""
    dense = result.model_bytes_dense
    rows = [
        ("model", f"{result.model_class}, {result.task}: {', '.join(result.inputs)} -> {', '.join(result.outputs)}"),
        ("dense weights", f"{megabytes(dense)} in float32"),
        *((file.path, f"{megabytes(file.bytes)} ({dense / file.bytes:.1f}x smaller)") for file in result.files),
        ("checked", f"as PyTorch to {result.largest_difference:.1e}, on random tokens (body float32)"),
    ]
    if result.task == "text-generation":
        rows.append(("generation", "reads the whole text for each token: these graphs keep no keys and values"))
    return aligned([*rows, ("written", result.output)])


def _download_rows(parts: dict[str, DownloadPart]) -> list[tuple[str, str]]:
    """All that is downloaded, and a line for each part and what to do about it."""
    rows = [("download", megabytes(sum(part.bytes for part in parts.values())))]
    for name, part in parts.items():
        text = f"{megabytes(part.bytes)}, {part.share:.1%}"
        if part.advice is not None:
            text += f": {part.advice}" + (f" ({megabytes(part.saves)} less)" if part.saves else "")
        rows.append((f"  {name}", text))
    return rows


def _body(graph: StoredGraph) -> str:
    return f"opset {graph.opset}" if graph.body is None else f"body {graph.body}, opset {graph.opset}"


def _export_rows(result: InspectExportReport) -> list[tuple[str, str]]:
    dense = result.model_bytes_dense
    sizes = [(graph, f"{megabytes(graph.bytes)} ({dense / graph.bytes:.1f}x smaller)") for graph in result.graphs]
    return [
        ("model", f"{result.model_class}, {result.task or 'of no task that is known'}"),
        ("dense weights", f"{megabytes(dense)} in float32"),
        *((graph.path, f"{size}, {_body(graph)}") for graph, size in sizes),
        *_download_rows(result.download),
    ]


def inspect_lines(result: InspectReport | InspectExportReport) -> list[str]:
    """What `projclust inspect` prints."""
    if isinstance(result, InspectExportReport):
        return aligned(_export_rows(result))
    rows = [
        ("model", f"{result.model_class}, {megabytes(result.model_bytes_stored)} of weights"),
        ("embedding", f"{result.embedding}, {result.n:,} x {result.d}"),
        ("embedding in file", f"{megabytes(result.bytes_stored)} ({result.bits_per_weight:.2f} bits per weight)"),
    ]
    for name, part in result.parts.items():
        shape = "x".join(map(str, part.shape))
        rows.append((f"  {name.rpartition('.')[2]}", f"{shape} {part.dtype}, {part.bytes:,} bytes"))
    rows += [(graph.path, f"{megabytes(graph.bytes)}, {_body(graph)}") for graph in result.graphs]
    rows += _download_rows(result.download)
    how = result.how
    if how is None:
        return aligned(
            [*rows, ("compressed", f"no: {RECOMMENDED}, and `projclust plan --probe` measures what it costs")]
        )
    error = how.relative_error
    if how.body_bytes_dense is not None and how.body_bytes_stored is not None:
        sizes = megabytes(how.body_bytes_stored), megabytes(how.body_bytes_dense)
        rows.append(("body", f"{how.body}, {sizes[0]} ({sizes[1]} as floats)"))
    rows += [
        ("compressed", f"{method_text(how)}, row weights {how.weights}"),
        ("relative error", "unknown (no report in the folder)" if error is None else f"{error:.4f}"),
    ]
    if how.model is not None:
        made_by = f"projclust {(how.versions or {}).get('projclust', 'of unknown version')}"
        rows.append(("made from", f"{how.model}, seed {how.seed}, {made_by}"))
    return aligned(rows)


def plan_lines(result: PlanReport) -> Iterator[str]:
    """What `projclust plan` prints."""
    from projclust.report.phrases import columns  # slow to import

    size = f"{result.n:,} x {result.d}, {megabytes(result.bytes_dense)} dense"
    weights = result.weights_chosen or result.weights
    rows = [("embedding", size), ("row weights", weights), ("sensitivity", result.metric)]
    yield from aligned([*rows, *_download_rows(result.download)])
    yield ""
    extra = [name for name in ("cosine", "kl") if any(getattr(row, name) is not None for row in result.rows)]
    table = [["recipe", "bits", "size", "smaller", "error", "weighted", *extra]]
    for row in result.rows:
        mark = "~" * row.predicted
        smaller = f"{result.bytes_dense / row.bytes:.1f}x"
        cells = [row.recipe, f"{row.bits_per_weight:.2f}", megabytes(row.bytes), smaller]
        cells += [f"{mark}{getattr(row, name):.4f}" for name in ("relative_error", "weighted_relative_error")]
        probed = [getattr(row, name) for name in extra]
        table.append([*cells, *("-" if value is None else f"{value:.4f}" for value in probed)])
    yield from columns(table)
    yield ""
    if any(row.predicted for row in result.rows):
        yield "~ predicted or measured on a sample; --exact computes it"
    for note in result.notes:
        yield f"note: {note}"
    pick = result.pick
    if pick is not None:
        size = f"{pick.bits_per_weight:.2f} bits a weight, {megabytes(pick.bytes)}"
        yield from aligned([("pick", f"auto, {size}: {pick.rule}"), *_script_rows(pick.errors_by_script)])
        yield from aligned([("took", f"{result.total_seconds:.0f} s")])
    if result.output is not None:
        yield from aligned([("written", result.output)])


def push_lines(result: PushReport) -> list[str]:
    """What `projclust push` prints."""
    rows = [(file.path, f"{file.bytes:,} bytes") for file in result.files]
    rows.append(("all files", megabytes(result.bytes)))
    visibility = "private" if result.private else "public"
    if result.dry_run:
        return aligned([*rows, ("would go to", f"{result.url} ({visibility} if it is new)")])
    done = "pushed to" if result.changed else "unchanged at"
    return aligned([*rows, (done, f"{result.url} ({visibility})"), ("commit", str(result.commit))])


def cell_line(row: Row) -> str:
    """One measurement of `projclust glue-eval`."""
    limit = "" if row.limit is None else f" (limited to {row.limit:,} rows)"
    what = f"{row.task}{limit}, seed {row.seed}, {row.label}"
    if row.status != "done":
        return f"{what}: {row.status}: {row.reason}"
    before = "without further training" if row.settings.get("epochs") == 0 else "before further training"
    scores = {before: row.score_before, "after training": row.score_after}
    shown = ", ".join(f"{score:.2f} {stage}" for stage, score in scores.items() if score is not None)
    return f"{what}: {shown} ({row.validation_rows:,} rows)"
