"""The job behind `projclust glue-eval`: what a compressed embedding costs on GLUE, task by task."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from projclust.errors import ProjclustError
from projclust.glue.cells import CellStore, Row, identity_hash
from projclust.glue.measure import AS_IS, PAPER, PRETRAINED, SCRATCH, Fit, RowWeights, Study, measure, prepare
from projclust.glue.settings import Settings, parse_per_task, settings_for
from projclust.glue.tasks import load_task, parse_tasks
from projclust.glue.training import make_accelerator
from projclust.glue.variants import BASELINES, BEST, COMPRESSED, Size, Variant, parse_variant, parse_variants
from projclust.hf.checkpoint import CONFIG, local_folder, read_json, resolve_checkpoint
from projclust.hf.config import AUTO, Metric
from projclust.hf.folder import cannot_write, locked, write_options
from projclust.report.results import Row as ResultRow
from projclust.report.results import parse_row
from projclust.report.statistics import Summary, summary_json
from projclust.report.write import write_report

from .common import check_weights, choose_device, chosen_weights, versions, weights_exponent
from .inspect import inspect_checkpoint

CELLS = "cells"
DEFAULT_VARIANTS = "dense,svd,projective"
# RoBERTa and its kin count positions from the padding id on.
_COUNTED_FROM_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "mpnet", "ibert"),
    *("longformer", "data2vec-text"),
}
_HALF = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class GlueEvalOptions:
    """The options of `projclust glue-eval`; see its --help. What is None is settled by the job."""

    model: str
    tasks: str = "all"
    glue_dir: str | None = None
    variants: str | None = None
    k: int | None = None
    j: int | None = None
    ratio: float | None = None
    bits: float | None = None
    affine: bool = False
    weights: str | None = None
    weights_exponent: float | None = None
    codes: str | None = None
    metric: str = Metric.MODEL.value
    restarts: int = 16
    max_iter: int = 100
    tol: float = 1e-3
    protocol: str | None = None
    epochs: int | None = None
    baseline_epochs: int = 3
    learning_rate: float = 3e-5
    batch_size: int = 32
    gradient_accumulation: int = 1
    max_length: int = 128
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    freeze_embedding: bool = False
    per_task: tuple[str, ...] = ()
    seeds: str = "0,1,2"
    limit: int | None = None
    mixed_precision: str = "no"
    device: str = "auto"
    output: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Hooks:
    """What a caller may watch: what begins, each cell that is done, training steps, and what the user should know."""

    stage: Callable[[str], None] = field(default=lambda text: None)
    cell: Callable[[Row, int, int], None] = field(default=lambda row, done, total: None)
    step: Callable[[int, int, float], None] = field(default=lambda step, steps, loss: None)
    warn: Callable[[str], None] = field(default=lambda text: None)


@dataclass(frozen=True)
class Evaluated:
    """What was done.

    Attributes:
        output: the folder of results.
        measured: how many cells were measured now.
        summaries: what the report says.
        card: the compressed checkpoint that was measured, whose model card may have the results.
    """

    output: str
    measured: int
    summaries: list[Summary]
    card: str | None

    def as_json(self) -> dict[str, Any]:
        """One object: "output", "measured" and "groups" (see `summary_json`)."""
        groups = [summary_json(summary) for summary in self.summaries]
        return {"output": self.output, "measured": self.measured, "groups": groups}


def evaluate_on_glue(options: GlueEvalOptions, hooks: Hooks | None = None) -> Evaluated:
    """Measure what is missing of tasks x variants x seeds, and write the report on everything measured so far.

    Finished cells are kept in the output folder, under a hash of all their settings; an interrupted run goes on where
    it was. Under torchrun or `accelerate launch` all processes call this.

    Returns:
        what was measured and reported; the same on every process, but for the summaries, which only the first has.

    Raises:
        ProjclustError: for every mistake and obstacle a user can mend; finished cells are kept.
    """
    hooks = hooks or Hooks()
    tasks, seeds, settings = parse_tasks(options.tasks), _seeds(options.seeds), _settings(options)
    per_task = parse_per_task(options.per_task)
    for task in per_task:
        settings_for(task, settings, per_task)  # refuses impossible ones before any work
    if options.weights is not None:
        check_weights(options.weights)
    output = Path(options.output or _default_output(options.model))
    accelerator = make_accelerator(settings, cpu=choose_device(options.device).type == "cpu")

    hooks.stage(f"reading {options.model}")
    with accelerator.main_process_first():
        checkpoint = resolve_checkpoint(options.model, options.revision)
    sizes = _sizes(checkpoint)
    size = _size(options, sizes)
    protocol, variants = _protocol_and_variants(options, size, sizes)
    if options.epochs is None and protocol != PAPER:
        settings = replace(settings, epochs=3)
    fit = _fit(options, variants, checkpoint, sizes["n"], hooks)
    study = Study(
        model=options.model,
        checkpoint=checkpoint,
        sizes=sizes,
        protocol=protocol,
        settings=settings,
        per_task=per_task,
        fit=fit,
        output=output,
        accelerator=accelerator,
        versions=versions("accelerate", "datasets", "tokenizers", "scikit-learn", "scipy"),
        stage=hooks.stage,
        step=hooks.step,
    )
    glue_dir = options.glue_dir or os.environ.get("PROJCLUST_GLUE_DIR")
    with _working_folder(output, checkpoint, accelerator.is_main_process):
        if accelerator.is_main_process:
            write_options(output, replace(options, output=str(output)))
        accelerator.wait_for_everyone()
        return _run(study, tasks, variants, seeds, size, glue_dir, hooks)


def _run(
    study: Study,
    tasks: tuple[str, ...],
    variants: tuple[Variant, ...],
    seeds: tuple[int, ...],
    size: Size,
    glue_dir: str | None,
    hooks: Hooks,
) -> Evaluated:
    store = CellStore(study.output / CELLS)
    is_main = study.accelerator.is_main_process
    with_best = any(variant.method == BEST for variant in variants)
    measurable = [variant for variant in variants if variant.method != BEST]
    data_sha256: dict[str, str] = {}  # of the tasks read so far
    rows: list[Row] = []
    summaries: list[Summary] = []
    measured = 0
    for seed in seeds:
        for task in tasks:
            with study.accelerator.main_process_first():
                data = load_task(task, glue_dir, study.settings_for(task).limit)
            data_sha256[task] = data.sha256
            bench = None
            for variant in measurable:
                training_score = with_best and variant.is_compressed_here
                row = _finished(study, store, data.sha256, task, variant, seed, training_score)
                study.accelerator.wait_for_everyone()  # all have looked before the first one writes
                if row is None:
                    bench = bench or prepare(study, data)
                    row = measure(bench, variant, seed, training_score)
                    measured += 1
                    if is_main:
                        store.write(row)
                rows.append(row)
                hooks.cell(row, len(rows), len(seeds) * len(tasks) * len(measurable))
            if bench is not None and is_main:  # after every task, so that a long run can be watched
                hooks.stage("writing the report")
                summaries = write_report(_reported(study, store, rows, size, with_best, data_sha256), study.output)
    if measured == 0 and is_main:
        summaries = write_report(_reported(study, store, rows, size, with_best, data_sha256), study.output)
    left_out = len(store.all()) - sum(row.variant != BEST for summary in summaries for row in summary.rows)
    if left_out and is_main:
        hooks.warn(f"{left_out} cells in {study.output} were measured with other settings and are left out here")
    card = study.model if study.protocol == AS_IS and local_folder(study.model) is not None else None
    return Evaluated(str(study.output), measured, summaries, card)


def _finished(
    study: Study, store: CellStore, data_sha256: str, task: str, variant: Variant, seed: int, training_score: bool
) -> Row | None:
    """A cell that is measured already; one with a score on the training rows serves where none is asked for."""
    for scored in (True, False)[: 1 if training_score else 2]:
        identity = study.identity(task, data_sha256, variant, seed, scored)
        row = store.read(store.path(task, variant.label, seed, identity))
        if row is not None:
            return row
    return None


def _reported(
    study: Study,
    store: CellStore,
    rows: list[Row],
    size: Size,
    with_best: bool,
    data_sha256: dict[str, str],
) -> list[ResultRow]:
    """These rows, and what earlier runs measured with the same settings: other tasks, variants and seeds."""
    found = {(row["task"], row["label"], row["seed"]): row for row in rows}
    data_sha256 = dict(data_sha256)
    for row in store.all():
        # Of a task that is not read now, the rows that were measured last.
        data = data_sha256.get(row["task"]) or str(row["data_sha256"])
        if _is_current(study, row, size, data):
            data_sha256.setdefault(row["task"], data)
            found.setdefault((row["task"], row["label"], row["seed"]), row)
    results = [parse_row(row, f"{store.folder}: the cell {key}") for key, row in found.items()]
    return [*results, *(_best(results) if with_best else [])]


def _is_current(study: Study, row: Row, size: Size, data_sha256: str) -> bool:
    """Whether measuring the row's task, variant and seed now would be the same experiment."""
    try:
        if row["variant"] == COMPRESSED:
            variant = Variant(COMPRESSED, COMPRESSED)
        else:
            variant = parse_variant(row["variant"], size, study.sizes["n"], study.sizes["d"])
    except ProjclustError:
        return False
    # With and without a score on the training rows it is the same measurement.
    scored = (False, True)
    return row["settings_hash"] in [study.identity(row["task"], data_sha256, variant, row["seed"], s) for s in scored]


def _best(rows: list[ResultRow]) -> list[ResultRow]:
    """For each task and seed the compressed variant with the best score on the training rows."""
    best: dict[tuple[str, int], ResultRow] = {}
    for row in rows:
        if row.training_score is None:
            continue
        known = best.get((row.task, row.seed))
        if known is None or known.training_score is None or row.training_score > known.training_score:
            best[row.task, row.seed] = row
    return [
        replace(
            row,
            variant=BEST,
            label=Variant(BEST, BEST).label,
            chosen=row.label,
            settings_hash=identity_hash({"best": row.settings_hash}),
        )
        for row in best.values()
    ]


def _fit(options: GlueEvalOptions, variants: tuple[Variant, ...], checkpoint: Path, n_rows: int, hooks: Hooks) -> Fit:
    """The settings of all fits, with the row weights that the variants need."""

    def weights(codes: str | None) -> RowWeights:
        name, values = chosen_weights(
            options.weights, codes, checkpoint, n_rows, options.weights_exponent, hooks.stage, hooks.warn
        )
        return RowWeights(name.partition(":")[0], values, weights_exponent(name, options.weights_exponent))

    fit = Fit(options.restarts, options.max_iter, options.tol)
    if any(fit.weights_of(variant) is fit.weights for variant in variants if variant.is_compressed_here):
        fit = replace(fit, weights=weights(None))
    if any(variant.codes == AUTO or variant.method in BASELINES for variant in variants):
        fit = replace(fit, code_weights=weights(AUTO))
    return fit


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in str(text).split(",")))
    except ValueError:
        raise ProjclustError(f"--seeds takes whole numbers with commas between them, not {text!r}") from None
    if min(seeds) < 0 or max(seeds) >= 2**31:
        raise ProjclustError(f"--seeds takes numbers from 0 to {2**31 - 1}, not {text!r}")
    return seeds


def _settings(options: GlueEvalOptions) -> Settings:
    names = [part.name for part in fields(Settings)]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Settings(**given)


def _default_output(model: str) -> str:
    folder = local_folder(model)
    return f"{Path(model if folder is None else os.path.abspath(folder)).name}-glue"


def _sizes(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's embedding takes, dense and as stored; see `Study.sizes`."""
    found = inspect_checkpoint(str(checkpoint))
    config = read_json(checkpoint / CONFIG)
    n, d, stored = found["n"], found["d"], found["bytes_stored"]
    dtype = next(part["dtype"] for name, part in found["parts"].items() if name.endswith("weight"))
    sizes = {
        "n": n,
        "d": d,
        "dtype": dtype,
        "compressed": found["compressed"],
        "positions": _positions(config),
        "bytes_dense": stored,
        "model_bytes_dense": found["model_bytes_stored"],
    }
    if found["compressed"]:
        dense = n * d * (2 if dtype in _HALF else 4)
        sizes |= {
            "bytes_dense": dense,
            "model_bytes_dense": found["model_bytes_stored"] - stored + dense,
            "stored": {
                "k": found["k"],
                "j": found["j"],
                "affine": found["affine"],
                "codes": found["codes"] if dtype == "U8" else _HALF.get(dtype, "float32"),
                "params_stored": found["params_stored"],
                "compression_rate": 1 - found["params_stored"] / (n * d),
                "bytes_stored": stored,
                "bits_per_weight": found["bits_per_weight"],
                "model_bytes_stored": found["model_bytes_stored"],
                "relative_error": found["relative_error"],
            },
        }
    return sizes


def _positions(config: dict[str, Any]) -> int | None:
    """The longest input a model takes, where its config tells."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and config.get("model_type") in _COUNTED_FROM_PADDING:
        positions -= (config.get("pad_token_id") or 0) + 1
    return positions


def _size(options: GlueEvalOptions, sizes: dict[str, Any]) -> Size:
    if sum(target is not None for target in (options.j, options.ratio, options.bits)) > 1:
        raise ProjclustError("give at most one of --j, --ratio and --bits")
    # A half-precision model is fine-tuned in float32, but its factors are stored as the compression would store them.
    codes = options.codes or _HALF.get(sizes["dtype"])
    ratio = Size.ratio if options.ratio is None else options.ratio
    k = Size.k if options.k is None else options.k
    return Size(k, options.j, ratio, options.affine, codes, options.bits, options.metric)


def _protocol_and_variants(
    options: GlueEvalOptions, size: Size, sizes: dict[str, Any]
) -> tuple[str, tuple[Variant, ...]]:
    if sizes["compressed"]:
        for name in ("protocol", "variants", "k", "j", "ratio", "bits", "codes"):
            if getattr(options, name) is not None:
                raise ProjclustError(f"{options.model} is compressed: it is scored as it is, without --{name}")
        return AS_IS, (Variant(COMPRESSED, COMPRESSED),)
    if options.epochs == 0 and BEST in (options.variants or "").split(","):
        raise ProjclustError("the variant best is chosen after training: --epochs 0 has none")
    protocol = options.protocol or PAPER
    if protocol not in (PAPER, PRETRAINED):
        raise ProjclustError(f"--protocol must be {PAPER} or {PRETRAINED}, not {protocol}")
    return protocol, parse_variants(options.variants or DEFAULT_VARIANTS, size, sizes["n"], sizes["d"])


@contextlib.contextmanager
def _working_folder(output: Path, checkpoint: Path, is_main: bool) -> Iterator[None]:
    """The output folder, made if need be and kept from other runs until this one ends.

    Raises:
        ProjclustError: it is the model's own, holds what glue-eval did not write, cannot be written, or another run
            has it.
    """
    if not is_main:
        yield
        return
    try:
        if output.exists() and not output.is_dir():
            raise ProjclustError(f"the output {output} exists and is not a folder: choose another --output")
        if output.resolve() == checkpoint.resolve() or checkpoint.resolve() in output.resolve().parents:
            raise ProjclustError(f"the output {output} is in the model's own folder: choose another --output")
        if output.is_dir() and any(output.iterdir()) and not (output / CELLS).is_dir():
            raise ProjclustError(f"{output} was not written by projclust glue-eval: choose another --output")
        if not output.absolute().parent.is_dir():
            raise ProjclustError(
                f"the folder {output.absolute().parent} for the output does not exist: create it first"
            )
        output.mkdir(exist_ok=True)
        with contextlib.ExitStack() as locks:
            try:
                locks.enter_context(locked(output, wait=False))
            except BlockingIOError:
                raise ProjclustError(
                    f"another run is writing to {output}: wait for it or choose another --output"
                ) from None
            (output / CELLS).mkdir(exist_ok=True)
            shutil.rmtree(output / SCRATCH, ignore_errors=True)  # of a run that was killed
            yield
    except (OSError, SafetensorError) as error:
        raise cannot_write(output, error) from error
