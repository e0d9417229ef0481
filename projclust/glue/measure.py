"""One cell: a task, a variant, a seed. Compress, score, train, score."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projclust.coding.baselines import Baseline, baseline_table
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.checkpoint import (
    Loaded,
    embedding_tensors,
    fingerprint,
    load_classifier,
    load_tokenizer,
    read_json,
    save_checkpoint,
    stored_tensors,
)
from projclust.hf.compress import compress_embedding
from projclust.hf.config import AUTO, ProjClustConfig
from projclust.hf.folder import check_space, new_folder
from projclust.hf.swap import input_embedding
from projclust.planning import bytes_for_bits, compression_rate, parameter_count, stored_bytes

from .batches import EncodedRows, encode
from .cells import Row, identity_hash
from .settings import Settings, settings_for
from .tasks import TaskData
from .training import Diverged, Step, check_batch_size, points, score, train
from .variants import BASELINES, COMPRESSED, Variant

PAPER, PRETRAINED, AS_IS = "paper", "pretrained", "as-is"
# In the output folder, while a cell is measured.
SCRATCH = "scratch"
_BASELINE_FILE = "baseline.json"


@dataclass(frozen=True)
class RowWeights:
    """Row weights by name.

    Attributes:
        name: "uniform", "wordfreq", "counts" or "text".
        values: (n,), or None for uniform ones.
        exponent: the power of frequencies that they are; None for uniform ones.
    """

    name: str = "uniform"
    values: Tensor | None = None
    exponent: float | None = None

    @cached_property
    def sha256(self) -> str | None:
        """Of the values."""
        return None if self.values is None else identity_hash({"weights": self.values.tolist()})


@dataclass(frozen=True)
class Fit:
    """How the embedding is fitted: options of the solver, and row weights.

    Attributes:
        weights: of subspaces.
        code_weights: of codes "auto" and of product quantization.
    """

    restarts: int = 16
    max_iter: int = 100
    tol: float = 1e-3
    weights: RowWeights = RowWeights()
    code_weights: RowWeights = RowWeights()

    def weights_of(self, variant: Variant) -> RowWeights:
        """Those that a variant is fitted with."""
        return self.code_weights if variant.codes == AUTO or variant.method in BASELINES else self.weights

    def identity(self, variant: Variant) -> dict[str, Any]:
        """What of it bears on a variant's result."""
        weights = self.weights_of(variant).sha256
        return {"restarts": self.restarts, "max_iter": self.max_iter, "tol": self.tol, "weights": weights}


@dataclass(frozen=True)
class Study:
    """What all cells of one command have in common.

    Attributes:
        model: as named on the command line.
        checkpoint: its folder.
        sizes: of its embedding as stored: n, d, and for a compressed one k, j, affine, codes, relative_error.
        protocol: "paper", "pretrained", or "as-is" for a model that is compressed already.
        settings, per_task: of the fine-tuning.
        fit: of the compression.
        output: the folder of results.
        accelerator: of this process.
        versions: of the packages.
        stage: called with what begins.
        step: called while training.
    """

    model: str
    checkpoint: Path
    sizes: dict[str, Any]
    protocol: str
    settings: Settings
    per_task: dict[str, dict[str, Any]]
    fit: Fit
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

    def identity(self, task: str, data_sha256: str, variant: Variant, seed: int, training_score: bool) -> str:
        """The hash of all that defines a cell."""
        return identity_hash(
            {
                "model": self.sha256,
                "protocol": self.protocol,
                "task": task,
                "data": data_sha256,
                "variant": variant.identity() | (self.fit.identity(variant) if variant.is_compressed_here else {}),
                "seed": seed,
                "settings": asdict(self.settings_for(task)),
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
    positions = study.sizes["positions"]
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
    if largest >= study.sizes["n"]:
        raise ProjclustError(
            f"the tokenizer of {study.model} gives the token {largest}, but its embedding has {study.sizes['n']} rows"
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
        "settings": {**asdict(bench.settings), "epochs": None, "freeze_embedding": False},
    }
    folder = study.output / "models" / f"{task}-seed{seed}-{identity_hash(identity)[:12]}"
    if seed in bench.diverged:
        raise Diverged(bench.diverged[seed])
    if not folder.exists():
        if study.accelerator.is_main_process:
            check_space(folder.parent, study.sizes["model_bytes_dense"])
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
        "variant": variant.name,
        "label": variant.label,
        "method": variant.method,
        "k": variant.k,
        "j": variant.j,
        "affine": variant.affine if variant.k is not None else None,
        "bits": variant.bits,
        "metric": variant.metric,
        "codes": variant.codes,
        "weights": study.fit.weights_of(variant).name if variant.is_compressed_here else None,
        "seed": seed,
        "status": "done",
        "reason": None,
        "metrics_before": None,
        "metrics_after": None,
        "score_before": None,
        "score_after": None,
        "training_score": None,
        "chosen": None,
        **_sizes(study, variant),
        "training_rows": len(bench.data.train),
        "validation_rows": bench.data.validation_rows,
        "limit": bench.settings.limit,
        "glue": bench.data.source,
        "data_sha256": bench.data.sha256,
        "model": study.model,
        "model_sha256": study.sha256,
        "protocol": study.protocol,
        "settings": asdict(bench.settings),
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
    if not variant.is_compressed_here:
        yield source
        return
    study.stage(f"{bench.data.task.name}, seed {seed}: compressing, {variant.label}")
    folder = study.output / SCRATCH
    if study.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    row |= _compress(bench, variant, seed, source, folder, row)
    study.accelerator.wait_for_everyone()
    try:
        yield folder
    finally:
        # All processes have loaded it: scoring and training end together.
        if study.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)


def _compress(bench: Bench, variant: Variant, seed: int, source: Path, folder: Path, row: Row) -> Row:
    """Compress the classifier in `source`, write it to `folder`; what it takes and how far it is off.

    All processes share the fit, and the first one writes.
    """
    study = bench.study
    model = _classifier(bench, source, seed)
    name = input_embedding(model)[0]
    started = time.perf_counter()
    weights = study.fit.weights_of(variant)
    sizes: Row
    if variant.method in BASELINES:
        sizes = _rebuild(model, variant, weights.values, seed)
    else:
        config = _config(study.fit, variant, seed, weights.exponent)
        group = dist.group.WORLD if study.accelerator.num_processes > 1 else None
        compression = compress_embedding(model, config, weights.values, study.accelerator.device, process_group=group)
        sizes = {"params_stored": compression.parameters, "relative_error": compression.relative_error}
    seconds = time.perf_counter() - started
    if study.accelerator.is_main_process:
        save_checkpoint(_whole(model), folder)
    study.accelerator.wait_for_everyone()
    stored = sizes.pop("bytes", None)
    if stored is None:
        stored = sum(tensor.bytes for tensor in embedding_tensors(stored_tensors(folder), name).values())
    return {
        **_stored(study, stored),
        **sizes,
        "compression_rate": 1 - sizes["params_stored"] / (study.sizes["n"] * study.sizes["d"]),
        "seconds": {**row["seconds"], "fit": seconds},
    }


def _config(fit: Fit, variant: Variant, seed: int, exponent: float | None) -> ProjClustConfig:
    if variant.codes == AUTO:
        assert variant.metric is not None
        more: dict[str, Any] = {} if exponent is None else {"weights_exponent": exponent}
        return ProjClustConfig(codes=AUTO, seed=seed, bits=variant.bits, metric=variant.metric, **more)
    assert variant.k is not None
    assert variant.j is not None
    return ProjClustConfig(
        variant.k,
        variant.j,
        variant.affine,
        variant.method,
        variant.codes,
        seed,
        fit.restarts,
        fit.max_iter,
        fit.tol,
        variant.ranks,
        variant.loss,
    )


@torch.no_grad()
def _rebuild(model: PreTrainedModel, variant: Variant, weights: Tensor | None, seed: int) -> Row:
    """Put in place of the table what a baseline's decoder would read: the accuracy of its codes, without their size."""
    table = input_embedding(model)[1].weight
    found = baseline_table(Baseline(variant.method), table.detach(), variant.bits, weights, seed)
    error = float((found.table - table).square().sum() / table.square().sum())
    table.copy_(found.table)
    return {"bytes": found.bytes, "params_stored": table.numel(), "relative_error": error}


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
        if variant.method in BASELINES:  # what is trained in floats would not be those codes any more
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


def _sizes(study: Study, variant: Variant) -> Row:
    """What a variant's embedding takes: as foreseen, where it is yet to be compressed."""
    n, d, sizes = study.sizes["n"], study.sizes["d"], study.sizes
    dense = {
        "params_dense": n * d,
        "params_stored": n * d,
        "compression_rate": 0.0,
        "bytes_dense": sizes["bytes_dense"],
        "bytes_stored": sizes["bytes_dense"],
        "bits_per_weight": 8 * sizes["bytes_dense"] / (n * d),
        "model_bytes_dense": sizes["model_bytes_dense"],
        "model_bytes_stored": sizes["model_bytes_dense"],
        "relative_error": 0.0,
    }
    if variant.bits is not None:
        return dense | {**_stored(study, bytes_for_bits(variant.bits, n, d)), "relative_error": None}
    if variant.k is None or variant.j is None:
        return dense | (sizes["stored"] if variant.method == COMPRESSED else {})
    parameters = parameter_count(n, d, variant.k, variant.j, variant.affine)
    codes = variant.codes or "float32"
    return dense | {
        "params_stored": parameters,
        "compression_rate": compression_rate(n, d, variant.k, variant.j, variant.affine),
        **_stored(study, stored_bytes(n, d, variant.k, variant.j, codes, variant.affine)),
        "relative_error": None,
    }


def _stored(study: Study, stored: int) -> Row:
    """Sizes that follow from the bytes of the stored embedding."""
    return {
        "bytes_stored": stored,
        "bits_per_weight": 8 * stored / (study.sizes["n"] * study.sizes["d"]),
        "model_bytes_stored": study.sizes["model_bytes_dense"] - study.sizes["bytes_dense"] + stored,
    }
