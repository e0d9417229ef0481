"""The job behind `projclust glue-eval`: what a compressed embedding costs on GLUE, task by task."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError

from projclust.checkpoints.folder import OPTIONS_FILE, cannot_write, check_target_name, locked, made, write_options
from projclust.checkpoints.load import load_tokenizer
from projclust.checkpoints.source import CONFIG, local_folder, read_json, resolve_checkpoint
from projclust.checkpoints.static import as_transformers
from projclust.errors import OptionError, ProjclustError
from projclust.glue.data import TaskData, load_task
from projclust.glue.engine import Engine
from projclust.glue.experiment import AS_IS, MODELS, PAPER, SCRATCH, ModelSizes, Study, measure, prepare, weights_key
from projclust.glue.settings import Settings, parse_per_task, settings_for
from projclust.glue.store import CellStore, identity_hash
from projclust.glue.tasks import parse_tasks
from projclust.glue.training import make_accelerator
from projclust.glue.variants import BEST, COMPRESSED, Variant, best_of, parse_variant, parse_variants
from projclust.jobs.common import SILENT, Hooks, choose_device, versions
from projclust.jobs.inspect import inspect_checkpoint
from projclust.jobs.options import GlueEvalOptions
from projclust.jobs.report import Reported
from projclust.report.write import write_report
from projclust.results.rows import Row, checked
from projclust.results.summary import Summary
from projclust.shapes import DenseShape
from projclust.weights.choose import choose_weights
from projclust.weights.row_weights import RowWeights

CELLS = "cells"
DEFAULT_VARIANTS = "dense,svd,projective"
# RoBERTa and its kin number positions from the padding id on.
_COUNTED_FROM_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "mpnet", "ibert"),
    *("longformer", "data2vec-text"),
}
_HALF = {"F16": "float16", "BF16": "bfloat16"}


def evaluate_on_glue(options: GlueEvalOptions, hooks: Hooks = SILENT) -> Reported:
    """Measure what is missing of tasks x variants x seeds, and write the report on everything measured so far.

    Finished cells are kept in the output folder, under a hash of all their settings; an interrupted run goes on where
    it was. Under torchrun or `accelerate launch` all processes call this.

    Returns:
        what was measured and reported; the same on every process, but for the summaries, which only the first has.

    Raises:
        ProjclustError: a user's mistake, or an obstacle that a user can mend; finished cells are kept.
    """
    per_task = parse_per_task(options.per_task)
    for task in per_task:
        settings_for(task, options.settings, per_task)  # refuses impossible settings before any work
    accelerator = make_accelerator(options.settings, cpu=choose_device(options.device).type == "cpu")

    hooks.stage(f"reading {options.model}")
    with accelerator.main_process_first():
        checkpoint = as_transformers(resolve_checkpoint(options.model, options.revision))
    sizes = _sizes(checkpoint)
    protocol, variants = _protocol_and_variants(options, sizes)
    default_epochs = Settings.epochs if protocol == PAPER else 3
    study = Study(
        model=options.model,
        checkpoint=checkpoint,
        sizes=sizes,
        protocol=protocol,
        settings=replace(options.settings, epochs=default_epochs if options.epochs is None else options.epochs),
        per_task=per_task,
        fit=options.recipe,
        weights=_weights(variants, checkpoint, sizes.table.n, hooks),
        output=options.folder,
        accelerator=accelerator,
        versions=versions("accelerate", "datasets", "tokenizers", "scikit-learn", "scipy"),
        stage=hooks.stage,
        step=hooks.step,
        revision=options.revision,
    )
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(_working_folder(study.output, checkpoint))
            CellStore(study.output / CELLS).all()  # what is no cell is refused now, and not after the first measurement
            write_options(study.output, replace(options, output=str(study.output)))
        accelerator.wait_for_everyone()
        return _run(study, parse_tasks(options.tasks), variants, options, hooks)


def _run(
    study: Study, tasks: tuple[str, ...], variants: tuple[Variant, ...], options: GlueEvalOptions, hooks: Hooks
) -> Reported:
    cells = _Cells(study, CellStore(study.output / CELLS), tasks, variants, options, hooks)
    store, is_main = cells.store, study.accelerator.is_main_process
    try:
        measured = cells.measure_here() if options.ray is None else cells.measure_by_ray(options.ray)
    except KeyboardInterrupt:
        if cells.rows and is_main:
            cells.report()
        raise
    summaries = cells.report() if is_main else []
    left_out = len(store.all()) - sum(row.variant != BEST for summary in summaries for row in summary.rows)
    if left_out and is_main:
        hooks.warn(f"{left_out} cells in {study.output} were measured with other settings and are left out here")
    card = study.model if study.protocol == AS_IS and local_folder(study.model) is not None else None
    return Reported(str(study.output), summaries, card, measured)


@dataclass
class _Cells:
    """The cells of one command, task by task for every seed, and the rows of those that are measured."""

    study: Study
    store: CellStore
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    options: GlueEvalOptions
    hooks: Hooks
    rows: list[Row] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    reported: int = -1

    @property
    def measurable(self) -> list[Variant]:
        """The variants that are measured; "best" is found among them."""
        return [variant for variant in self.variants if variant.name != BEST]

    @property
    def candidates(self) -> set[str]:
        """The labels of the variants that "best" is one of."""
        return best_of(self.variants)

    def data(self) -> Iterator[tuple[int, TaskData]]:
        """Every seed with the rows of every task."""
        glue_dir = self.options.glue_dir or os.environ.get("PROJCLUST_GLUE_DIR")
        for seed, task in itertools.product(self.options.seeds, self.tasks):
            with self.study.accelerator.main_process_first():
                data = load_task(task, glue_dir, self.study.settings_for(task).limit)
            yield seed, data

    def finished(self, data: TaskData, variant: Variant, seed: int) -> Row | None:
        """The row of a cell that was measured before."""
        # A measurement with a score on the training rows serves where none is asked for.
        scored = (True, self.training_score(variant))
        task, sha256 = data.task.name, data.sha256
        hashes = [self.study.identity(task, sha256, variant, seed, own) for own in scored]
        paths = [self.store.path(task, variant.label, seed, settings_hash) for settings_hash in hashes]
        return next(filter(None, map(self.store.read, paths)), None)

    def training_score(self, variant: Variant) -> bool:
        """Whether a variant is scored on the rows that it was trained on."""
        return variant.label in self.candidates

    def add(self, row: Row) -> None:
        """Enter a row, and tell of it."""
        self.rows.append(row)
        self.hooks.cell(row, len(self.rows), len(self.options.seeds) * len(self.tasks) * len(self.measurable))

    def measure_here(self) -> int:
        """Measure what is missing, one cell after the other, on all processes together; returns how many."""
        accelerator, measured = self.study.accelerator, 0
        for seed, data in self.data():
            bench = None
            for variant in self.measurable:
                row = self.finished(data, variant, seed)
                accelerator.wait_for_everyone()  # all have looked before the first one writes
                if row is None:
                    bench = bench or prepare(self.study, data)
                    row = measure(bench, variant, seed, self.training_score(variant))
                    measured += 1
                    if accelerator.is_main_process:
                        self.store.write(row)
                self.add(row)
            if bench is not None and accelerator.is_main_process:
                self.report()  # after every task, so that a long run can be watched
        return measured

    def measure_by_ray(self, engine: Engine) -> int:
        """Measure what is missing on a cluster of Ray, and keep each row as it comes; returns how many."""
        # Imports ray, which is an extra.
        from projclust.glue.ray_engine import Group, connected, measure_by_ray

        def groups() -> Iterator[Group]:
            for seed, data in self.data():
                found = {variant: self.finished(data, variant, seed) for variant in self.measurable}
                for row in filter(None, found.values()):
                    self.add(row)
                missing = [(variant, self.training_score(variant)) for variant, row in found.items() if row is None]
                if missing:
                    yield Group(data, seed, missing)

        measured = 0
        self.hooks.stage("connecting to Ray")
        with connected(engine):
            for row in measure_by_ray(self.study, groups(), engine, self.options.device):
                self.store.write(row)
                self.add(row)
                measured += 1
        places = {task: place for place, task in enumerate(self.tasks)}
        variants = {variant.label: place for place, variant in enumerate(self.measurable)}
        seeds = {seed: place for place, seed in enumerate(self.options.seeds)}
        self.rows.sort(key=lambda row: (seeds[row.seed], places[row.task], variants[row.label]))
        return measured

    def report(self) -> list[Summary]:
        """Write the report on everything that is measured so far, unless it is written already."""
        if self.reported != len(self.rows):
            self.hooks.stage("writing the report")
            rows = _reported(self.study, self.store, self.rows)
            rows += _best(list(filter(self.may_be_best, rows)))
            self.summaries, self.reported = write_report(rows, self.study.output), len(self.rows)
        return self.summaries

    def may_be_best(self, row: Row) -> bool:
        """Whether "best" chooses among rows like this: it was not named after it, and its rivals are measured too."""
        rivals = {own.label for own in self.rows if (own.task, own.seed) == (row.task, row.seed)}
        named_after = {variant.label for variant in self.measurable} - self.candidates
        return bool(self.candidates) and row.label not in named_after and (not rivals or self.candidates <= rivals)


def _reported(study: Study, store: CellStore, rows: list[Row]) -> list[Row]:
    """Add to these rows what earlier runs measured with the same settings: other tasks, variants and seeds."""
    found = {(row.task, row.label, row.seed): row for row in rows}
    data_sha256 = {row.task: str(row.data_sha256) for row in rows}
    for row in store.all():
        # Where a task is not read now, the rows that were measured last count.
        data = data_sha256.get(row.task) or str(row.data_sha256)
        if _is_current(study, row, data):
            data_sha256.setdefault(row.task, data)
            found.setdefault((row.task, row.label, row.seed), row)
    return [checked(row, f"{store.folder}: the cell {key}") for key, row in found.items()]


def _is_current(study: Study, row: Row, data_sha256: str) -> bool:
    """Tell whether measuring the row's task, variant and seed now would be the same experiment."""
    variant = Variant(COMPRESSED)
    if row.variant != COMPRESSED:
        try:
            variant = parse_variant(row.variant, study.fit, study.sizes.table)
        except ProjclustError:
            return False
    # With and without a score on the training rows it is the same measurement.
    scored = (False, True)
    return row.settings_hash in [study.identity(row.task, data_sha256, variant, row.seed, s) for s in scored]


def _best(rows: list[Row]) -> list[Row]:
    """Find for each task and seed the compressed variant with the best score on the training rows."""
    best: dict[tuple[str, int], Row] = {}
    scored = [row for row in rows if row.training_score is not None]
    for row in sorted(scored, key=lambda row: row.training_score or 0, reverse=True):
        own_hash = identity_hash({"best": row.settings_hash})
        own = replace(row, variant=BEST, label=Variant(BEST).label, chosen=row.label, settings_hash=own_hash)
        best.setdefault((row.task, row.seed), own)
    return list(best.values())


def _weights(
    variants: tuple[Variant, ...], checkpoint: Path, n_rows: int, hooks: Hooks
) -> dict[tuple[str, float | None], RowWeights]:
    """Make the row weights that the variants need, each once."""
    found: dict[tuple[str, float | None], RowWeights] = {}
    for recipe in [variant.recipe for variant in variants if variant.recipe is not None]:
        key = weights_key(recipe)
        if key not in found:
            found[key] = choose_weights(recipe, lambda: load_tokenizer(checkpoint), n_rows, hooks.stage, hooks.warn)
    return found


def _sizes(checkpoint: Path) -> ModelSizes:
    """Find what a checkpoint and its embedding take, dense and as stored."""
    found = inspect_checkpoint(str(checkpoint))
    dtype = next(part.dtype for name, part in found.parts.items() if name.endswith("weight"))
    table = DenseShape(found.n, found.d, _HALF.get(dtype, "float32"))
    config = read_json(checkpoint / CONFIG)
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and config.get("model_type") in _COUNTED_FROM_PADDING:
        positions -= (config.get("pad_token_id") or 0) + 1
    how = found.how
    if how is None:
        return ModelSizes(table, found.bytes_stored, found.model_bytes_stored, positions)
    if dtype != "U8":
        found = replace(found, how=replace(how, codes=table.dtype))
    others = found.model_bytes_stored - found.bytes_stored
    others += (how.body_bytes_dense or 0) - (how.body_bytes_stored or 0)
    return ModelSizes(table, table.bytes, others + table.bytes, positions, found)


def _protocol_and_variants(options: GlueEvalOptions, sizes: ModelSizes) -> tuple[str, tuple[Variant, ...]]:
    if sizes.stored is not None:
        given = {"protocol": options.protocol, "variants": options.variants}
        given |= {name: getattr(options.recipe, name) for name in ("k", "j", "ratio", "bits", "size", "codes")}
        for name, value in given.items():
            if value is not None:
                raise OptionError(f"{options.model} is compressed: it is scored as it is, without `{name}`")
        return AS_IS, (Variant(COMPRESSED),)
    if options.epochs == 0 and BEST in (options.variants or "").split(","):
        raise ProjclustError("the variant best is chosen after training: --epochs 0 has none")
    variants = parse_variants(options.variants or DEFAULT_VARIANTS, options.recipe, sizes.table)
    return str(options.protocol or PAPER), variants


@contextlib.contextmanager
def _working_folder(output: Path, checkpoint: Path) -> Iterator[None]:
    """Make the output folder and keep it from other runs until this one ends; refuse one that is not glue-eval's.

    Where the run fails before anything was measured, what was made for it is removed.
    """
    check_target_name(output)
    try:
        if output.exists() and not output.is_dir():
            raise ProjclustError(f"the output {output} exists and is not a folder: choose another --output")
        if output.resolve() == checkpoint.resolve() or checkpoint.resolve() in output.resolve().parents:
            raise ProjclustError(f"the output {output} is in the model's own folder: choose another --output")
        if output.is_dir() and any(output.iterdir()) and not (output / CELLS).is_dir():
            raise ProjclustError(f"{output} was not written by projclust glue-eval: choose another --output")
        with made(output), locked(output), _emptied(output):
            (output / CELLS).mkdir(exist_ok=True)
            shutil.rmtree(output / SCRATCH, ignore_errors=True)  # left by a run that was killed
            yield
    except (OSError, SafetensorError) as error:
        raise cannot_write(output, error) from error


@contextlib.contextmanager
def _emptied(output: Path) -> Iterator[None]:
    """Remove from a new folder of results what there is of it, if an error comes before any measurement."""
    new = not (output / CELLS).exists()
    try:
        yield
    except BaseException:
        if new and not any((output / CELLS).iterdir()) and not (output / MODELS).exists():
            for name in (SCRATCH, CELLS):
                shutil.rmtree(output / name, ignore_errors=True)
            (output / OPTIONS_FILE).unlink(missing_ok=True)
        raise
