"""`projclust compress`."""

from enum import Enum
from typing import Annotated, Any

import typer

from .options import (
    Affine,
    Bits,
    Codes,
    ConfigFile,
    Debug,
    DeviceName,
    MaxIter,
    MetricName,
    MetricOption,
    OutputFormat,
    Overwrite,
    Restarts,
    Revision,
    Tolerance,
    Weights,
    WeightsExponent,
    flags_win,
    on_command_line,
)
from .output import (
    Format,
    is_main_process,
    megabytes,
    method_text,
    print_json,
    print_next,
    print_rows,
    progress_bar,
    quoted,
    warn,
)

# These repeat enumerations and defaults of modules that import torch, which --help should not wait for; a test compares
# them.


class MethodName(str, Enum):
    PROJECTIVE = "projective"
    SVD = "svd"
    RANDOM = "random"


class RanksName(str, Enum):
    EQUAL = "equal"
    ADAPTIVE = "adaptive"


class LossName(str, Enum):
    L2 = "l2"
    L1 = "l1"
    HUBER = "huber"


def compress(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a dense model.", metavar="MODEL")],
    k: Annotated[int | None, typer.Option("-k", "--k", help="Number of subspaces (5; 1 with --method svd).")] = None,
    j: Annotated[int | None, typer.Option("-j", "--j", help="Dimension of the subspaces.")] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="Instead of --j: fraction of the parameters (codes auto: bytes) to take off, 0.4 for 40%."),
    ] = None,
    bits: Bits = None,
    size: Annotated[
        str | None, typer.Option(help="Stored bytes of the embedding, as 400KB or 1.5MB.", metavar="BYTES")
    ] = None,
    method: Annotated[MethodName, typer.Option(help="svd and random are baselines.")] = MethodName.PROJECTIVE,
    ranks: Annotated[
        RanksName, typer.Option(help="adaptive: a rank for each subspace, no more parameters than --j for all.")
    ] = RanksName.EQUAL,
    loss: Annotated[
        LossName, typer.Option(help="Of each row's distance: squared, or l1 or huber, which heed outliers less.")
    ] = LossName.L2,
    affine: Affine = False,
    weights: Weights = None,
    weights_exponent: WeightsExponent = None,
    codes: Codes = None,
    metric: MetricOption = MetricName.MODEL,
    restarts: Restarts = 16,
    max_iter: MaxIter = 100,
    tol: Tolerance = 1e-3,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of all random choices.")] = 0,
    device: Annotated[DeviceName, typer.Option(help="Where to fit.")] = DeviceName.AUTO,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder to write (<name>-projclust).", metavar="DIR")
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Then push the folder to this repository, user/name.", metavar="REPO")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: create a private repository.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the sizes; fit and write nothing.")] = False,
    revision: Revision = None,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Compress the word embedding of a model and write a checkpoint that from_pretrained loads.

    Give one of --bits, --size, --ratio and --j. Under torchrun and accelerate launch the processes share the fit of
    subspaces.

    Example: projclust compress roberta-base --bits 0.5

    Example: projclust compress roberta-base --k 5 --j 40
    """
    from projclust.jobs.compress import CompressOptions, Hooks, compress_checkpoint

    target = flags_win(ctx, j=j, ratio=ratio, bits=bits, size=size)
    if method is MethodName.SVD and not on_command_line(ctx, "k"):
        k = None  # a config file's k is of its own method
    options = CompressOptions(
        model=model,
        k=k,
        **target,
        method=method.value,
        ranks=ranks.value,
        loss=loss.value,
        affine=affine,
        weights=weights,
        weights_exponent=weights_exponent,
        codes=None if codes is None else codes.value,
        metric=metric.value,
        restarts=restarts,
        max_iter=max_iter,
        tol=tol,
        seed=seed,
        device=device.value,
        output=output,
        overwrite=overwrite,
        push_to_hub=push_to_hub,
        private=private,
        dry_run=dry_run,
        revision=revision,
    )
    with progress_bar() as bar:

        def step(restart: int, step: int, cost: float) -> None:
            if step == 0:
                bar.advance(f"fitting: start {restart} of {restarts}, cost {cost:.6g}", restart, restarts)
            else:
                bar.advance(f"fitting: step {step}, cost {cost:.6g}", step, None)

        def rows(done: int, total: int) -> None:
            bar.advance(f"coding rows: {done:,} of {total:,}", done, total)

        report = compress_checkpoint(options, Hooks(bar.stage, step, rows, warn, bar.clear))
    if not is_main_process():
        return
    if format is Format.JSON:
        print_json(report)
    else:
        _print_report(report)
        result = quoted(report["output"]) if push_to_hub is None else push_to_hub
        print_next("drop --dry-run to write it" if dry_run else f"projclust inspect {result}")


def _print_report(report: dict[str, Any]) -> None:
    at_most = "at most " * (report["ranks"] is None)
    parameters = f"{report['params_dense']:,}"
    if report["codes"] == "auto":
        if report["params_stored"] is not None:
            parameters += f" -> {report['params_stored']:,} that have a code"
    else:
        parameters += f" -> {at_most}{report['params_stored']:,} (compression rate {report['compression_rate']:.4f})"
    rows = [
        ("embedding", f"{report['embedding']}, {report['n']:,} x {report['d']}"),
        ("method", method_text(report)),
        ("parameters", parameters),
        (
            "embedding in file",
            f"{megabytes(report['bytes_dense'])} -> {at_most}{megabytes(report['bytes_stored'])} "
            f"({report['bytes_dense'] / report['bytes_stored']:.1f}x smaller, {report['bits_per_weight']:.2f} bits per "
            f"weight, {report['codes']})",
        ),
        (
            "all weights",
            f"{megabytes(report['model_bytes_dense'])} -> {at_most}{megabytes(report['model_bytes_stored'])}",
        ),
        *(
            ("stays dense", f"{part['name']}, {megabytes(part['bytes'])}: {part['reason']}")
            for part in report["dense_parts"]
        ),
    ]
    if report["relative_error"] is not None:
        svd = report["same_size_svd"]
        steps = ""
        if report["iterations"] is not None:
            steps = f", {report['iterations']} step" + "s" * (report["iterations"] > 1)
        error = f"{report['relative_error']:.4f}"
        if report["weights"] != "uniform":
            error += f", weighted {report['weighted_relative_error']:.4f}"
        rows += [
            ("relative error", f"{error} (SVD of equal size, {svd['codes']}: {svd['weighted_relative_error']:.4f})"),
            ("fit", f"{report['fit_seconds']:.1f} s on {report['device']}{steps}"),
            ("written", report["output"]),
        ]
    if report["pushed_to"] is not None:
        rows.append(("pushed to", report["pushed_to"]))
    print_rows(rows)
