"""One cell, which is a task, a variant and a seed: compress, score, train, score."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.folder import check_space, new_folder
from projclust.checkpoints.load import Loaded, load_tokenizer
from projclust.checkpoints.save import fingerprint, save_checkpoint
from projclust.checkpoints.source import read_json
from projclust.checkpoints.tensors import embedding_tensors, stored_tensors
from projclust.errors import CheckpointError, ProjclustError
from projclust.glue.batches import EncodedRows, encode
from projclust.glue.data import TaskData
from projclust.glue.label_order import ROWS_OF_ORDER, check_order
from projclust.glue.settings import Settings, settings_for
from projclust.glue.store import identity_hash
from projclust.glue.training import Diverged, Step, check_batch_size, logits, points, score, train
from projclust.glue.variants import COMPRESSED, Variant
from projclust.hf.body import round_again
from projclust.hf.compression import Run, compress_embedding
from projclust.hf.swap import input_embedding
from projclust.recipes.recipe import Recipe
from projclust.recipes.subspaces import shape_of
from projclust.results.reports import InspectReport
from projclust.results.rows import Row
from projclust.shapes import DenseShape
from projclust.weights.row_weights import RowWeights

PAPER, AS_IS = "paper", "as-is"
# The compressed checkpoint, in the output folder while a cell is measured.
MODELS, SCRATCH = "models", "scratch"
# Sizes and codes are told by the row of each variant.
_OTHER_OPTIONS = ("ranks", "loss", "body", "weights", "weights_exponent", "restarts", "max_iter", "tol", "revision")
_BASELINE_FILE = "baseline.json"


@dataclass(frozen=True)
class ModelSizes:
    """What a checkpoint and its embedding take.

    Attributes:
        bytes_dense, model_bytes_dense: how much the dense embedding takes, and all weights with it.
        positions: the longest input the model takes, where its config tells.
        stored: what is found of a compressed model, its codes named as in results; None for a dense one.
    """

    table: DenseShape
    bytes_dense: int
    model_bytes_dense: int
    positions: int | None
    stored: InspectReport | None = None

    def taken(self, stored: int, parameters: int, error: float | None) -> dict[str, Any]:
        """Return the fields of a row about the stored embedding: its bytes, its parameters, and how far it is off."""
        return {
            "params_stored": parameters,
            "compression_rate": 1 - parameters / self.table.parameters,
            "bytes_stored": stored,
            "bits_per_weight": self.table.bits_for_bytes(stored),
            "model_bytes_stored": self.model_bytes_dense - self.bytes_dense + stored,
            "relative_error": error,
        }


@dataclass(frozen=True)
class Study:
    """What all cells of one command have in common.

    Attributes:
        model: the name that the command line gives; `checkpoint` is the model's folder.
        protocol: "paper", "pretrained", or "as-is" for a model that is compressed already.
        settings, per_task: how to fine-tune.
        fit: the options of the compression that all variants share.
        weights: the row weights, each under its `weights_key`.
        stage: called with what begins.
    """

    model: str
    checkpoint: Path
    sizes: ModelSizes
    protocol: str
    settings: Settings
    per_task: dict[str, dict[str, Any]]
    fit: Recipe
    weights: dict[tuple[str, float | None], RowWeights]
    output: Path
    accelerator: Accelerator
    versions: dict[str, str]
    stage: Callable[[str], None]
    step: Step
    revision: str | None = None

    @property
    def fit_options(self) -> dict[str, Any]:
        """Return what a row's other fields do not tell of the options, as far as it is not the default."""
        given = self.fit.as_dict() | {"revision": self.revision}
        defaults = Recipe().as_dict()
        return {name: given[name] for name in _OTHER_OPTIONS if given[name] != defaults.get(name)}

    @cached_property
    def sha256(self) -> str:
        """The hash of the checkpoint's content."""
        return fingerprint(self.checkpoint)

    def settings_for(self, task: str) -> Settings:
        """Return how to fine-tune on one task."""
        settings = settings_for(task, self.settings, self.per_task)
        return settings if self.protocol == PAPER else replace(settings, baseline_epochs=0)

    def weights_of(self, recipe: Recipe) -> RowWeights:
        """Return the row weights that a recipe is fitted with."""
        return self.weights.get(weights_key(recipe), RowWeights())

    def identity(self, task: str, data_sha256: str, variant: Variant, seed: int, training_score: bool) -> str:
        """Hash all that defines a cell."""
        own = variant.identity(self.fit)
        if variant.recipe is not None:
            own["weights"] = self.weights_of(variant.recipe).sha256
        cell = {
            "model": self.sha256,
            "protocol": self.protocol,
            "task": task,
            "data": data_sha256,
            "variant": own,
            "seed": seed,
            "settings": self.settings_for(task).as_dict(),
            "training_score": training_score,
        }
        return identity_hash(cell)


@dataclass(frozen=True)
class Bench:
    """A task made ready for one model, its rows as token ids.

    Attributes:
        head_is_stored: whether the model came with a classifier for the task.
        diverged: how the dense model's training diverged, for the seeds with which it did.
    """

    study: Study
    data: TaskData
    settings: Settings
    tokenizer: PreTrainedTokenizerBase
    train: EncodedRows
    validation: dict[str, EncodedRows]
    head_is_stored: bool
    diverged: dict[int, str] = field(default_factory=dict)


def prepare(study: Study, data: TaskData) -> Bench:
    """Tokenize a task's rows, and refuse settings or a tokenizer that do not suit the model."""
    task, name, settings = data.task, study.model, study.settings_for(data.task.name)
    check_batch_size(settings, study.accelerator.num_processes)
    positions = study.sizes.positions
    if positions is not None and settings.max_length > positions:
        raise ProjclustError(f"--max-length {settings.max_length}: {name} takes at most {positions} tokens")
    tokenizer = load_tokenizer(study.checkpoint)
    if tokenizer.pad_token is None:  # GPT-2 and its like; padded positions are masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ProjclustError(f"the tokenizer of {name} has no token to pad with: set its pad_token")
    train_rows = encode(data.train, tokenizer, settings.max_length)
    validation = {suffix: encode(rows, tokenizer, settings.max_length) for suffix, rows in data.validation.items()}
    ids = [row for rows in (train_rows, *validation.values()) for row in rows.features["input_ids"]]
    largest, n = max(tokenizer.pad_token_id, *map(max, ids)), study.sizes.table.n
    if largest >= n:
        raise ProjclustError(f"the tokenizer of {name} gives the token {largest}, but its embedding has {n} rows")
    classifier = load_classifier(study.checkpoint, task.labels)
    flag, epochs = "--epochs", settings.epochs
    if study.protocol == PAPER:
        flag, epochs = "--baseline-epochs", settings.baseline_epochs
    if not classifier.head_is_stored and epochs == 0:
        raise ProjclustError(f"{name} holds no classifier for {task.name}: {flag} 0 trains none")
    scored_as_it_is = classifier.head_is_stored and (study.protocol != PAPER or epochs == 0)
    if scored_as_it_is and not classifier.is_named:
        some = train_rows.first(ROWS_OF_ORDER)
        check_order(name, task, logits(classifier.model, tokenizer, some, study.accelerator).argmax(1), some.labels)
    return Bench(study, data, settings, tokenizer, train_rows, validation, classifier.head_is_stored)


def baseline_path(bench: Bench, seed: int) -> Path:
    """Return where the fine-tuned dense model of a seed lies once it is trained."""
    study, task = bench.study, bench.data.task.name
    identity = {
        "model": study.sha256,
        "task": task,
        "data": bench.data.sha256,
        "seed": seed,
        "settings": {**bench.settings.as_dict(), "epochs": None, "freeze_embedding": False},
    }
    return study.output / MODELS / f"{task}-seed{seed}-{identity_hash(identity)[:12]}"


def baseline_folder(bench: Bench, seed: int) -> Path:
    """Return where the fine-tuned dense model lies, which is trained now unless an earlier run has left it there.

    Raises:
        Diverged: its training met a loss that is no number.
    """
    study, task, folder = bench.study, bench.data.task.name, baseline_path(bench, seed)
    if seed in bench.diverged:
        raise Diverged(bench.diverged[seed])
    if not folder.exists():
        if study.accelerator.is_main_process:
            check_space(folder.parent, study.sizes.model_bytes_dense)
        epochs, seconds = bench.settings.baseline_epochs, 0.0
        model = _classifier(bench, study.checkpoint, seed)
        if epochs:
            study.stage(f"{task}, seed {seed}: training the dense model, {epochs} epochs")
            try:
                seconds = _train(bench, model, epochs, seed, freeze_embedding=False)
            except Diverged as error:
                bench.diverged[seed] = f"already the dense model's training: {error}"
                raise Diverged(bench.diverged[seed]) from None
        if study.accelerator.is_main_process:
            folder.parent.mkdir(exist_ok=True)
            with new_folder(folder, overwrite=False) as unfinished:
                save_checkpoint(Loaded(model), unfinished)
                (unfinished / _BASELINE_FILE).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    study.accelerator.wait_for_everyone()
    return folder


def measure(bench: Bench, variant: Variant, seed: int, training_score: bool) -> Row:
    """Compress, score, train and score again, as the study's protocol says, and return the row of results.json.

    With `training_score`, the trained model is also scored on the rows it was trained on. The row's status is
    "diverged" when training met a loss that is no number.
    """
    row = _foreseen(bench, variant, seed, training_score)
    try:
        with _compressed(bench, variant, row) as (folder, row):
            model = _classifier(bench, folder, seed)
            if bench.study.protocol == PAPER or bench.head_is_stored:
                metrics = _score(bench, model, bench.validation, row)
                row = replace(row, metrics_before=metrics, score_before=points(metrics))
            if bench.settings.epochs:
                row = _trained(bench, variant, model, row, training_score)
    except Diverged as error:
        row = replace(row, status="diverged", reason=str(error))
    return replace(row, seconds={name: round(value, 3) for name, value in row.seconds.items()})


def _foreseen(bench: Bench, variant: Variant, seed: int, training_score: bool) -> Row:
    """Return what is known of a cell before it is measured; what the embedding takes is foreseen."""
    study, data, recipe = bench.study, bench.data, variant.recipe or Recipe()
    sizes, task, table = study.sizes, data.task.name, study.sizes.table
    taken = sizes.taken(sizes.bytes_dense, table.parameters, 0.0)
    if variant.recipe is not None:
        parameters = table.parameters if recipe.k is None else shape_of(recipe, table).parameters
        taken = sizes.taken(recipe.stored_bytes(table), parameters, None)
    row = Row(
        task=task,
        variant=variant.name,
        label=variant.label,
        method=variant.method,
        k=recipe.k,
        j=recipe.j,
        affine=None if recipe.k is None else recipe.affine,
        codes=None if recipe.codes is None else str(recipe.codes),
        seed=seed,
        params_dense=table.parameters,
        bytes_dense=sizes.bytes_dense,
        model_bytes_dense=sizes.model_bytes_dense,
        **taken,
        training_rows=len(data.train),
        validation_rows=sum(map(len, data.validation.values())),
        limit=bench.settings.limit,
        glue=data.source,
        model=study.model,
        model_sha256=study.sha256,
        protocol=study.protocol,
        settings=bench.settings.as_dict(),
        settings_hash=study.identity(task, data.sha256, variant, seed, training_score),
        seconds={"baseline": 0.0, "fit": 0.0, "train": 0.0, "evaluate": 0.0},
        device=str(study.accelerator.device),
        processes=study.accelerator.num_processes,
        versions=study.versions,
        bits=recipe.bits,
        metric=str(recipe.sensitivity) if recipe.is_auto else None,
        weights=None if variant.recipe is None else study.weights_of(recipe).recorded,
        data_sha256=data.sha256,
        options=study.fit_options,
    )
    found = sizes.stored
    if variant.name != COMPRESSED or found is None or found.how is None or found.stored is None:
        return row
    how, taken = found.how, sizes.taken(found.bytes_stored, found.stored.params_stored, found.how.relative_error)
    taken["model_bytes_stored"] = found.model_bytes_stored
    return replace(row, k=how.k, j=how.j, affine=how.affine, codes=how.codes, **taken)


@contextlib.contextmanager
def _compressed(bench: Bench, variant: Variant, row: Row) -> Iterator[tuple[Path, Row]]:
    """Give the folder of the checkpoint to measure, as a user would load it, and the row with its sizes."""
    study, source = bench.study, bench.study.checkpoint
    if study.protocol == PAPER:
        source = baseline_folder(bench, row.seed)
        try:
            row.seconds["baseline"] = float(read_json(source / _BASELINE_FILE)["seconds"])
            stored_tensors(source)
        except (CheckpointError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{source} is damaged: delete it to have the dense model trained again") from None
    if variant.recipe is None:
        yield source, row
        return
    study.stage(f"{row.task}, seed {row.seed}: compressing, {variant.label}")
    folder = study.output / SCRATCH
    if study.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    row = _compress(bench, replace(variant.recipe, seed=row.seed), source, folder, row)
    try:
        yield folder, row
    finally:
        # All processes have loaded it by now, because scoring and training end together.
        if study.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _compress(bench: Bench, recipe: Recipe, source: Path, folder: Path, row: Row) -> Row:
    """Compress the classifier in `source` into `folder`, and enter what it takes and how far it is off.

    All processes share the fit, and the first one writes.
    """
    study = bench.study
    model = _classifier(bench, source, recipe.seed)
    name, embedding = input_embedding(model)
    started = time.perf_counter()
    weights = study.weights_of(recipe)
    if recipe.is_stored:
        group = dist.group.WORLD if study.accelerator.num_processes > 1 else None
        compression = compress_embedding(model, recipe, weights, Run(study.accelerator.device, group))
        errors, fitted = compression.errors, compression.fitted
    else:
        table = embedding.weight.detach()
        fitted = recipe.fit(table, weights.values)
        errors = fitted.errors
        # The table becomes what the baseline's decoder would read: the accuracy of its codes, without their size.
        table.copy_(fitted.rows(torch.arange(len(table))))
    row.seconds["fit"] = time.perf_counter() - started
    if study.accelerator.is_main_process:
        save_checkpoint(Loaded(model), folder)
    study.accelerator.wait_for_everyone()
    tensors = stored_tensors(folder)
    written = sum(tensor.bytes for tensor in embedding_tensors(tensors, name).values())
    size = written if recipe.is_stored else fitted.bytes
    row = replace(row, **study.sizes.taken(size, fitted.parameters, errors.plain))
    if recipe.body is not None:
        return replace(row, model_bytes_stored=sum(tensor.bytes for tensor in tensors.values()))
    return row


def _score(bench: Bench, model: PreTrainedModel, splits: dict[str, EncodedRows], row: Row) -> dict[str, float]:
    """Score a cell's model; the time goes into the row."""
    bench.study.stage(f"{row.task}, seed {row.seed}, {row.label}: scoring")
    started = time.perf_counter()
    metrics = score(bench.data.task, model, bench.tokenizer, splits, bench.study.accelerator)
    row.seconds["evaluate"] += time.perf_counter() - started
    return metrics


def _trained(bench: Bench, variant: Variant, model: PreTrainedModel, row: Row, training_score: bool) -> Row:
    """Train a cell's model and score it again."""
    epochs = bench.settings.epochs
    bench.study.stage(f"{row.task}, seed {row.seed}, {row.label}: training, {epochs} epochs")
    # A baseline's codes would be lost if the table were trained in floats.
    freeze = bench.settings.freeze_embedding or not (variant.recipe is None or variant.recipe.is_stored)
    # The rows come in another order than in the dense model's training, the same for all variants.
    row.seconds["train"] = _train(bench, model, epochs, row.seed + 1_000_000, freeze_embedding=freeze)
    round_again(model)  # to what would be saved
    metrics = _score(bench, model, bench.validation, row)
    reached = points(_score(bench, model, {"": bench.train}, row)) if training_score else None
    return replace(row, metrics_after=metrics, score_after=points(metrics), training_score=reached)


def _classifier(bench: Bench, folder: Path, seed: int) -> PreTrainedModel:
    """Load a checkpoint as a classifier; newly initialised parameters depend on the seed alone."""
    torch.manual_seed(seed)
    model = load_classifier(folder, bench.data.task.labels).model
    if model.config.pad_token_id is None:
        model.config.pad_token_id = bench.tokenizer.pad_token_id
    return model


def _train(bench: Bench, model: PreTrainedModel, epochs: int, seed: int, freeze_embedding: bool) -> float:
    study, settings = bench.study, replace(bench.settings, freeze_embedding=freeze_embedding)
    return train(model, bench.tokenizer, bench.train, epochs, seed, settings, study.accelerator, study.step)


def weights_key(recipe: Recipe) -> tuple[str, float | None]:
    """Return what tells the row weights of a recipe from those of others."""
    return recipe.weights or recipe.default_weights, recipe.weights_exponent
