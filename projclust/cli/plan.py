"""`projclust plan`."""

from typing import Annotated, Any

import typer

from projclust.errors import ProjclustError

from .options import (
    ConfigFile,
    Debug,
    DeviceName,
    MetricName,
    OutputFormat,
    Overwrite,
    Revision,
    Weights,
    WeightsExponent,
)
from .output import Format, megabytes, print_json, print_next, print_rows, progress_bar, warn

# Repeats the job's, which imports torch; a test compares them.
DEFAULT_SIZES = "2,1,0.75,0.5,0.35"


def plan(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a dense model.", metavar="MODEL")],
    bits: Annotated[
        str, typer.Option(help="Sizes to look at, in stored bits a weight; one alone is the target.", metavar="LIST")
    ] = DEFAULT_SIZES,
    size: Annotated[
        str | None, typer.Option(help="The target: stored bytes of the embedding, as 400KB or 1.5MB.", metavar="BYTES")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also compare the model's outputs, on random sequences of its tokens.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Code and fit the whole table instead of predicting; takes minutes.")
    ] = False,
    weights: Weights = None,
    weights_exponent: WeightsExponent = None,
    metric: Annotated[
        MetricName | None,
        typer.Option(
            "--metric",
            help="Of auto codes: weigh errors as the model's gradients do, or not (model with --probe, else none).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of all random choices.")] = 0,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = DeviceName.AUTO,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder for the plan and its plot.", metavar="DIR")
    ] = None,
    overwrite: Overwrite = False,
    revision: Revision = None,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Show what sizes of the embedding can be had and what each costs, ours and known ones, and pick one.

    Nothing is written without -o. Errors of coded tables are predicted unless --exact is given.

    Example: projclust plan roberta-base --probe

    Example: projclust plan roberta-base --size 2MB -o roberta-plan
    """
    from projclust.jobs.plan import Hooks, PlanOptions, plan_checkpoint

    options = PlanOptions(
        model=model,
        bits=_numbers(bits),
        size=size,
        probe=probe,
        exact=exact,
        weights=weights,
        weights_exponent=weights_exponent,
        metric=None if metric is None else metric.value,
        seed=seed,
        device=device.value,
        revision=revision,
        output=output,
        overwrite=overwrite,
    )
    with progress_bar() as bar:
        result = plan_checkpoint(options, Hooks(bar.stage, warn))
    if format is Format.JSON:
        print_json(result)
        return
    _print_plan(result)
    pick = result["pick"]
    print_next("projclust plan with larger --bits: none fits" if pick is None else pick["command"])


def _numbers(text: str) -> tuple[float, ...]:
    # A config file may hold a list.
    parts = [part.strip() for part in text.strip().strip("[]()").split(",")]
    try:
        return tuple(dict.fromkeys(float(part) for part in parts if part))
    except ValueError:
        raise ProjclustError(f"--bits takes numbers as 2,1,0.5, not {text!r}") from None


def _print_plan(result: dict[str, Any]) -> None:
    print_rows(
        [
            ("embedding", f"{result['n']:,} x {result['d']}, {megabytes(result['bytes_dense'])} dense"),
            ("row weights", f"{result['weights']}, metric {result['metric']}"),
        ]
    )
    print()
    extra = [name for name in ("cosine", "kl") if any(row[name] is not None for row in result["rows"])]
    lines = [["recipe", "bits", "size", "smaller", "error", "weighted", *extra]]
    for row in result["rows"]:
        mark = "~" * row["predicted"]
        lines.append(
            [
                row["recipe"],
                f"{row['bits_per_weight']:.2f}",
                megabytes(row["bytes"]),
                f"{result['bytes_dense'] / row['bytes']:.1f}x",
                f"{mark}{row['relative_error']:.4f}",
                f"{mark}{row['weighted_relative_error']:.4f}",
                *("-" if row[name] is None else f"{row[name]:.4f}" for name in extra),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([f"{first:<{widths[0]}}", *cells]))
    print()
    if any(row["predicted"] for row in result["rows"]):
        print("~ predicted or measured on a sample; --exact computes it")
    for note in result["notes"]:
        print(f"note: {note}")
    pick = result["pick"]
    if pick is not None:
        size = f"{pick['bits_per_weight']:.2f} bits a weight, {megabytes(pick['bytes'])}"
        print_rows([("pick", f"auto, {size}: {pick['rule']}"), ("took", f"{result['total_seconds']:.0f} s")])
    if result["output"] is not None:
        print_rows([("written", result["output"])])
