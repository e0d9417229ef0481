"""`projclust glue-eval`."""

from enum import Enum
from pathlib import Path
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
    Restarts,
    Revision,
    Tolerance,
    Weights,
    WeightsExponent,
    flags_win,
    on_command_line,
)
from .output import Format, is_main_process, print_json, print_next, print_rows, progress_bar, quoted, warn


class ProtocolName(str, Enum):
    PAPER = "paper"
    PRETRAINED = "pretrained"


class PrecisionName(str, Enum):
    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"


def glue_eval(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or local folder, dense or compressed.", metavar="MODEL")],
    tasks: Annotated[
        str, typer.Option(help="all (the nine of GLUE), or some: cola,sst2,...; demo needs no data.")
    ] = "all",
    glue_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder of nyu-mll/glue's layout; else what PROJCLUST_GLUE_DIR names, else the Hub.", metavar="DIR"
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Some of dense, svd, random, projective, best, int8, int4, int3, int2, nf4, pq, or with own options: "
            "projective:k=3:ratio=0.8, projective:bits=0.5 (dense,svd,projective)."
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Number of subspaces (5).")] = None,
    j: Annotated[int | None, typer.Option("-j", "--j", help="Dimension of the subspaces; svd gets equal size.")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Instead of --j: fraction of the parameters to take off (0.4).")
    ] = None,
    bits: Bits = None,
    affine: Affine = False,
    weights: Weights = None,
    weights_exponent: WeightsExponent = None,
    codes: Codes = None,
    metric: MetricOption = MetricName.MODEL,
    restarts: Restarts = 16,
    max_iter: MaxIter = 100,
    tol: Tolerance = 1e-3,
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(help="paper: train, compress, train again; pretrained: compress, then train (paper)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Training after the compression (2; 3 with --protocol pretrained).")
    ] = None,
    baseline_epochs: Annotated[int, typer.Option(help="Training before it, with --protocol paper.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after the warm-up.")] = 3e-5,
    batch_size: Annotated[int, typer.Option(help="Rows of one step, over all processes.")] = 32,
    gradient_accumulation: Annotated[
        int,
        typer.Option(
            help="Parts a batch is cut into, to save memory; an epoch's last batch, if not full, weighs less."
        ),
    ] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens of a row; longer ones are cut.")] = 128,
    warmup: Annotated[float, typer.Option(help="Fraction of the steps with a rising learning rate.")] = 0.06,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    max_grad_norm: Annotated[float, typer.Option(help="Larger gradients are scaled down to it.")] = 1.0,
    freeze_embedding: Annotated[
        bool, typer.Option("--freeze-embedding", help="Do not train the embedding after the compression.")
    ] = False,
    per_task: Annotated[
        list[str] | None,
        typer.Option(help="Other settings for one task: cola:learning-rate=1e-4:epochs=4. Repeatable.", metavar="SPEC"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="One run for each.")] = "0,1,2",
    limit: Annotated[
        int | None, typer.Option(help="Use so many rows of each split only, for a quick look; marked everywhere.")
    ] = None,
    mixed_precision: Annotated[PrecisionName, typer.Option(help="Of the training.")] = PrecisionName.NO,
    device: Annotated[DeviceName, typer.Option(help="cpu keeps off a GPU.")] = DeviceName.AUTO,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder of the results (<name>-glue).", metavar="DIR")
    ] = None,
    revision: Revision = None,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Fine-tune and score on GLUE: the dense model against compressed ones, with a report.

    The same command again does only what is missing. Runs as it is under torchrun and accelerate launch.

    Example: projclust glue-eval distilbert-base-uncased --tasks cola,mrpc --ratio 0.4
    """
    from projclust.jobs.glue_eval import GlueEvalOptions, Hooks, evaluate_on_glue
    from projclust.report.terminal import summary_table
    from projclust.report.write import HTML_FILE

    target = flags_win(ctx, j=j, ratio=ratio, bits=bits)
    options = GlueEvalOptions(
        model=model,
        tasks=tasks,
        glue_dir=glue_dir,
        variants=variants,
        k=k,
        **target,
        affine=affine,
        weights=weights,
        weights_exponent=weights_exponent,
        codes=None if codes is None else codes.value,
        metric=metric.value,
        restarts=restarts,
        max_iter=max_iter,
        tol=tol,
        protocol=None if protocol is None else protocol.value,
        epochs=epochs,
        baseline_epochs=baseline_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        max_length=max_length,
        warmup=warmup,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        freeze_embedding=freeze_embedding,
        per_task=tuple(per_task or ()) if on_command_line(ctx, "per_task") else _of_file(ctx, per_task),
        seeds=seeds,
        limit=limit,
        mixed_precision=mixed_precision.value,
        device=device.value,
        output=output,
        revision=revision,
    )
    with progress_bar() as bar:
        stage = ""

        def begin(text: str) -> None:
            nonlocal stage
            stage = text
            bar.stage(text)

        def cell(row: dict[str, Any], done: int, total: int) -> None:
            what = f"{row['task']}{_limit(row)}, seed {row['seed']}, {row['label']}"
            bar.log(f"{done}/{total}  {what}: {_scores(row)}")

        def step(step: int, steps: int, loss: float) -> None:
            bar.advance(f"{stage}, loss {loss:.4f}", step, steps)

        result = evaluate_on_glue(options, Hooks(begin, cell, step, warn))
    if not is_main_process():
        return
    if format is Format.JSON:
        print_json(result.as_json())
        return
    for summary in result.summaries:
        print(summary_table(summary) + "\n")
    print_rows([("written", result.output)])
    if result.card is not None:
        print_next(f"projclust report {quoted(result.output)} --card {quoted(result.card)}")
    else:
        print_next(f"open {quoted(str(Path(result.output) / HTML_FILE))} in a browser")


def _of_file(ctx: typer.Context, per_task: list[str] | None) -> tuple[str, ...]:
    """The --per-task of a config file without what a flag sets for all tasks."""
    from projclust.glue.settings import PER_TASK, without_settings

    return without_settings(tuple(per_task or ()), {name for name in PER_TASK if on_command_line(ctx, name)})


def _scores(row: dict[str, Any]) -> str:
    if row["status"] != "done":
        return f"{row['status']}: {row['reason']}"
    scores = {"before further training": row["score_before"], "after training": row["score_after"]}
    shown = ", ".join(f"{score:.2f} {stage}" for stage, score in scores.items() if score is not None)
    return f"{shown} ({row['validation_rows']:,} rows)"


def _limit(row: dict[str, Any]) -> str:
    return "" if row["limit"] is None else f" (limited to {row['limit']:,} rows)"
