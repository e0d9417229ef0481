"""One cell: a task, a variant, a seed. Compress, score, train, score."""

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

from projclust.checkpoints.folder import check_space, new_folder
from projclust.checkpoints.load import Loaded, load_classifier, load_tokenizer
from projclust.checkpoints.save import fingerprint, save_checkpoint
from projclust.checkpoints.source import read_json
from projclust.checkpoints.tensors import embedding_tensors, stored_tensors
from projclust.errors import CheckpointError, ProjclustError
from projclust.glue.batches import EncodedRows, encode
from projclust.glue.data import TaskData
from projclust.glue.settings import Settings, settings_for
from projclust.glue.store import Row, identity_hash
from projclust.glue.training import Diverged, Step, check_batch_size, points, score, train
from projclust.glue.variants import COMPRESSED, Variant
from projclust.hf.compression import Run, compress_embedding
from projclust.hf.swap import input_embedding
from projclust.recipes.recipe import Recipe
from projclust.recipes.subspaces import shape_of
from projclust.shapes import DenseShape
from projclust.weights.rows import RowWeights

PAPER, PRETRAINED, AS_IS = "paper", "pretrained", "as-is"
# In the output folder, while a cell is measured.
SCRATCH = "scratch"
_BASELINE_FILE = "baseline.json"


@dataclass(frozen=True)
class ModelSizes:
    """What a checkpoint and its embedding take.

    Attributes:
        table: the shape of the embedding, with the dtype that it is stored in.
        bytes_dense, model_bytes_dense: of the dense embedding, and of all weights with it.
        positions: the longest input the model takes, where its config tells.
        stored: of a compressed model, what a row of results says of its embedding; else None.
    """

    table: DenseShape
    bytes_dense: int
    model_bytes_dense: int
    positions: int | None
    stored: dict[str, Any] | None = None

    def with_embedding(self, stored: int) -> Row:
        """Sizes that follow from the bytes of the stored embedding."""
        return {
            "bytes_stored": stored,
            "bits_per_weight": self.table.bits_for_bytes(stored),
            "model_bytes_stored": self.model_bytes_dense - self.bytes_dense + stored,
        }


@dataclass(frozen=True)
class Study:
    """What all cells of one command have in common.

    Attributes:
        model: as named on the command line.
        checkpoint: its folder.
        sizes: what it takes.
        protocol: "paper", "pretrained", or "as-is" for a model that is compressed already.
        settings, per_task: of the fine-tuning.
        fit: the options of the compression that all variants share.
        weights: the row weights, by what recipes say of them.
        output: the folder of results.
        accelerator: of this process.
        versions: of the packages.
        stage: called with what begins.
        step: called while training.
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
    stage: Callable[[str], None] = field(default=lambda text: None)
    step: Step = field(default=lambda step, steps, loss: None)

    @cached_property
    def sha256(self) -> str:
        """Of the checkpoint's content."""
        return fingerprint(self.checkpoint)

    def settings_for(self, task: str) -> Settings:
        """Of the fine-tuning on one task."""
        settings = settings_for(task, self.settings, self.per_task)
        return settings if self.protocol == PAPER else replace(settings, baseline_epochs=0)

    def weights_of(self, recipe: Recipe) -> RowWeights:
        """The row weights that a recipe is fitted with."""
        return self.weights.get(weights_key(recipe), RowWeights())

    def identity(self, task: str, data_sha256: str, variant: Variant, seed: int, training_score: bool) -> str:
        """The hash of all that defines a cell."""
        own = variant.identity(self.fit)
        if variant.recipe is not None:
            own["weights"] = self.weights_of(variant.recipe).sha256
        return identity_hash(
            {
                "model": self.sha256,
                "protocol": self.protocol,
                "task": task,
                "data": data_sha256,
                "variant": own,
                "seed": seed,
                "settings": self.settings_for(task).as_dict(),
                "training_score": training_score,
            }
        )


@dataclass(frozen=True)
class Bench:
    """A task made ready for one model: its rows as token ids.

    Attributes:
        head_is_stored: whether the model came with a classifier for the task.
        diverged: seeds with which the dense model's training diverged, and how.
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
    """Tokenize a task's rows.

    Raises:
        ProjclustError: the tokenizer is missing or not the model's, or the settings do not suit it.
    """
    task = data.task
    settings = study.settings_for(task.name)
    check_batch_size(settings, study.accelerator.num_processes)
    positions = study.sizes.positions
    if positions is not None and settings.max_length > positions:
        raise ProjclustError(f"--max-length {settings.max_length}: {study.model} takes at most {positions} tokens")
    tokenizer = load_tokenizer(study.checkpoint)
    if tokenizer.pad_token is None:  # GPT-2 and its like; padded positions are masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ProjclustError(f"the tokenizer of {study.model} has no token to pad with: set its pad_token")
    train_rows = encode(data.train, tokenizer, settings.max_length)
    validation = {suffix: encode(rows, tokenizer, settings.max_length) for suffix, rows in data.validation.items()}
    largest = max(
        tokenizer.pad_token_id,
        *(max(ids) for rows in (train_rows, *validation.values()) for ids in rows.features["input_ids"]),
    )
    if largest >= study.sizes.table.n:
        raise ProjclustError(
            f"the tokenizer of {study.model} gives the token {largest}, but its embedding has "
            f"{study.sizes.table.n} rows"
        )
    head_is_stored = load_classifier(study.checkpoint, task.labels).head_is_stored
    option = "baseline_epochs" if study.protocol == PAPER else "epochs"
    if not head_is_stored and getattr(settings, option) == 0:
        raise ProjclustError(
            f"{study.model} holds no classifier for {task.name}: --{option.replace('_', '-')} 0 trains none"
        )
    return Bench(study, data, settings, tokenizer, train_rows, validation, head_is_stored)


def baseline_folder(bench: Bench, seed: int) -> Path:
    """The dense model fine-tuned on the task, trained now unless an earlier run has left it: made once, used by all.

    Raises:
        Diverged: its training did.
    """
    study, task = bench.study, bench.data.task.name
    identity = {
        "model": study.sha256,
        "task": task,
        "data": bench.data.sha256,
        "seed": seed,
        "settings": {**bench.settings.as_dict(), "epochs": None, "freeze_embedding": False},
    }
    folder = study.output / "models" / f"{task}-seed{seed}-{identity_hash(identity)[:12]}"
    if seed in bench.diverged:
        raise Diverged(bench.diverged[seed])
    if not folder.exists():
        if study.accelerator.is_main_process:
            check_space(folder.parent, study.sizes.model_bytes_dense)
        epochs = bench.settings.baseline_epochs
        model = _classifier(bench, study.checkpoint, seed)
        seconds = 0.0
        if epochs:
            study.stage(f"{task}, seed {seed}: training the dense model, {epochs} epochs")
            settings = replace(bench.settings, freeze_embedding=False)
            try:
                seconds = _train(bench, model, epochs, seed, settings)
            except Diverged as error:
                bench.diverged[seed] = str(error)
                raise
        if study.accelerator.is_main_process:
            folder.parent.mkdir(exist_ok=True)
            with new_folder(folder, overwrite=False) as unfinished:
                save_checkpoint(_whole(model), unfinished)
                (unfinished / _BASELINE_FILE).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    study.accelerator.wait_for_everyone()
    return folder


def measure(bench: Bench, variant: Variant, seed: int, training_score: bool) -> Row:
    """Compress, score, train and score again, as the study's protocol says.

    Args:
        training_score: score the trained model on the rows it was trained on as well.

    Returns:
        the row of results.json; of status "diverged" when training met a loss that is no number.
    """
    study, task = bench.study, bench.data.task.name
    row: Row = {
        "task": task,
        **variant.as_row(),
        "weights": None if variant.recipe is None else study.weights_of(variant.recipe).recorded,
        "seed": seed,
        "status": "done",
        "reason": None,
        "metrics_before": None,
        "metrics_after": None,
        "score_before": None,
        "score_after": None,
        "training_score": None,
        "chosen": None,
        **_sizes(study.sizes, variant),
        "training_rows": len(bench.data.train),
        "validation_rows": bench.data.validation_rows,
        "limit": bench.settings.limit,
        "glue": bench.data.source,
        "data_sha256": bench.data.sha256,
        "model": study.model,
        "model_sha256": study.sha256,
        "protocol": study.protocol,
        "settings": bench.settings.as_dict(),
        "settings_hash": study.identity(task, bench.data.sha256, variant, seed, training_score),
        "seconds": {"baseline": 0.0, "fit": 0.0, "train": 0.0, "evaluate": 0.0},
        "device": str(study.accelerator.device),
        "processes": study.accelerator.num_processes,
        "versions": study.versions,
    }
    try:
        with _compressed(bench, variant, seed, row) as folder:
            _score_and_train(bench, variant, folder, seed, training_score, row)
    except Diverged as error:
        row |= {"status": "diverged", "reason": str(error)}
        row |= {"metrics_after": None, "score_after": None, "training_score": None}
    row["seconds"] = {name: round(value, 3) for name, value in row["seconds"].items()}
    return row


@contextlib.contextmanager
def _compressed(bench: Bench, variant: Variant, seed: int, row: Row) -> Iterator[Path]:
    """The checkpoint to measure, its sizes entered into `row`.

    It is loaded from disk: what is measured is what a user would load.
    """
    study = bench.study
    if study.protocol == PAPER:
        try:
            source = baseline_folder(bench, seed)
        except Diverged as error:
            raise Diverged(f"already the dense model's training: {error}") from None
        try:
            row["seconds"]["baseline"] = float(read_json(source / _BASELINE_FILE)["seconds"])
            stored_tensors(source)
        except (CheckpointError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{source} is damaged: delete it to have the dense model trained again") from None
    else:
        source = study.checkpoint
    if variant.recipe is None:
        yield source
        return
    study.stage(f"{bench.data.task.name}, seed {seed}: compressing, {variant.label}")
    folder = study.output / SCRATCH
    if study.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    sizes, row["seconds"]["fit"] = _compress(bench, replace(variant.recipe, seed=seed), source, folder)
    row |= sizes
    study.accelerator.wait_for_everyone()
    try:
        yield folder
    finally:
        # All processes have loaded it: scoring and training end together.
        if study.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _compress(bench: Bench, recipe: Recipe, source: Path, folder: Path) -> tuple[Row, float]:
    """Compress the classifier in `source`, write it to `folder`; what it takes, how far it is off, and seconds.

    All processes share the fit, and the first one writes.
    """
    study = bench.study
    model = _classifier(bench, source, recipe.seed)
    name = input_embedding(model)[0]
    started = time.perf_counter()
    weights, stored = study.weights_of(recipe), None
    if recipe.is_stored:
        group = dist.group.WORLD if study.accelerator.num_processes > 1 else None
        compression = compress_embedding(model, recipe, weights, Run(study.accelerator.device, group))
        errors, parameters = compression.errors, compression.fitted.parameters
    else:
        table = input_embedding(model)[1].weight.detach()
        fitted = recipe.fit(table, weights.values)
        errors, parameters, stored = fitted.errors, fitted.parameters, fitted.bytes
        # In place of the table what the baseline's decoder would read: the accuracy of its codes, without their size.
        table.copy_(fitted.rows(torch.arange(len(table))))
    seconds = time.perf_counter() - started
    if study.accelerator.is_main_process:
        save_checkpoint(_whole(model), folder)
    study.accelerator.wait_for_everyone()
    if stored is None:
        stored = sum(tensor.bytes for tensor in embedding_tensors(stored_tensors(folder), name).values())
    found = {
        **study.sizes.with_embedding(stored),
        "params_stored": parameters,
        "relative_error": errors.plain,
        "compression_rate": 1 - parameters / study.sizes.table.parameters,
    }
    return found, seconds


def _score_and_train(bench: Bench, variant: Variant, folder: Path, seed: int, training_score: bool, row: Row) -> None:
    """Enter scores and seconds into `row`."""
    where = f"{bench.data.task.name}, seed {seed}, {variant.label}"
    model = _classifier(bench, folder, seed)
    if bench.study.protocol == PAPER or bench.head_is_stored:
        row["metrics_before"] = _timed_score(bench, model, bench.validation, where, row)
        row["score_before"] = points(row["metrics_before"])
    if bench.settings.epochs:
        bench.study.stage(f"{where}: training, {bench.settings.epochs} epochs")
        # Another order of rows than the dense model's training had, the same one for all variants.
        settings = bench.settings
        if (
            variant.recipe is not None and not variant.recipe.is_stored
        ):  # what is trained in floats would not be those codes any more
            settings = replace(settings, freeze_embedding=True)
        row["seconds"]["train"] = _train(bench, model, bench.settings.epochs, seed + 1_000_000, settings)
        row["metrics_after"] = _timed_score(bench, model, bench.validation, where, row)
        row["score_after"] = points(row["metrics_after"])
        if training_score:
            row["training_score"] = points(_timed_score(bench, model, {"": bench.train}, where, row))


def _timed_score(
    bench: Bench, model: PreTrainedModel, splits: dict[str, EncodedRows], where: str, row: Row
) -> dict[str, float]:
    study = bench.study
    study.stage(f"{where}: scoring")
    started = time.perf_counter()
    metrics = score(bench.data.task, model, bench.tokenizer, splits, study.accelerator)
    row["seconds"]["evaluate"] += time.perf_counter() - started
    return metrics


def _classifier(bench: Bench, folder: Path, seed: int) -> PreTrainedModel:
    """A checkpoint as a classifier; newly initialised parameters depend on the seed alone."""
    torch.manual_seed(seed)
    model = load_classifier(folder, bench.data.task.labels).model
    if model.config.pad_token_id is None:
        model.config.pad_token_id = bench.tokenizer.pad_token_id
    return model


def _train(bench: Bench, model: PreTrainedModel, epochs: int, seed: int, settings: Settings) -> float:
    study = bench.study
    return train(model, bench.tokenizer, bench.train, epochs, seed, settings, study.accelerator, study.step)


def _whole(model: PreTrainedModel) -> Loaded:
    return Loaded(model, missing=[], extra={}, lost=[])


def _sizes(sizes: ModelSizes, variant: Variant) -> Row:
    """What a variant's embedding takes: as foreseen, where it is yet to be compressed."""
    table, recipe = sizes.table, variant.recipe
    row = {
        "params_dense": table.parameters,
        "params_stored": table.parameters,
        "compression_rate": 0.0,
        "bytes_dense": sizes.bytes_dense,
        "model_bytes_dense": sizes.model_bytes_dense,
        "relative_error": 0.0,
        **sizes.with_embedding(sizes.bytes_dense),
    }
    if recipe is None:
        return row | ((sizes.stored or {}) if variant.name == COMPRESSED else {})
    row |= {**sizes.with_embedding(recipe.stored_bytes(table)), "relative_error": None}
    if recipe.k is not None:
        shape = shape_of(recipe, table)
        row |= {"params_stored": shape.parameters, "compression_rate": shape.compression_rate}
    return row


def weights_key(recipe: Recipe) -> tuple[str, float | None]:
    """What of a recipe tells its row weights from others."""
    return recipe.weights or recipe.default_weights, recipe.weights_exponent
