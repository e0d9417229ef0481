"""Fine-tuning and scoring a sequence classifier with Accelerate, on one device or on many."""

import math
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from projclust.errors import ProjclustError
from projclust.glue.batches import EncodedRows, ShuffledBatches, SortedBatches, data_loader
from projclust.glue.metrics import GlueMetric
from projclust.glue.settings import Settings
from projclust.glue.tasks import Task
from projclust.hf.private import renew_scaler

# The loss is read from the device only so often, because reading it waits for the device.
STEPS_BETWEEN_CHECKS = 20
SCORING_BATCH = 64

Step = Callable[[int, int, float], None]
"""Called now and then while training, with the step, the number of steps and the mean loss since the last call."""


class Diverged(Exception):
    """Training met a loss, or the model gave an output, that is no number."""


def make_accelerator(settings: Settings, cpu: bool) -> Accelerator:
    """Make the accelerator of this process; the launcher's settings are taken as they are."""
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.gradient_accumulation,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            # The others wait while one process downloads and compresses.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
    except (ValueError, ImportError, NotImplementedError) as error:
        raise ProjclustError(f"--mixed-precision {settings.mixed_precision} does not work here: {error}") from None
    parts = accelerator.gradient_accumulation_steps
    if parts != settings.gradient_accumulation:
        raise ProjclustError(
            f"the launcher asks for {parts} steps of gradient accumulation: use --gradient-accumulation"
        )
    return accelerator


def check_batch_size(settings: Settings, processes: int) -> None:
    """Refuse a batch that cannot be cut into equal parts."""
    if settings.batch_size % (settings.gradient_accumulation * processes):
        raise ProjclustError(
            f"--batch-size {settings.batch_size} is the batch of all processes together: it must be a multiple of "
            f"--gradient-accumulation {settings.gradient_accumulation} times {processes} processes"
        )


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: EncodedRows,
    epochs: int,
    seed: int,
    settings: Settings,
    accelerator: Accelerator,
    on_step: Step = lambda step, steps, loss: None,
) -> float:
    """Fine-tune `model` in place for `epochs`, whatever `settings` says of them, and return the seconds that it took.

    The seed decides the order of the rows and the dropout. After `Diverged` the model is unusable.
    """
    started = time.perf_counter()
    set_seed(seed, device_specific=True)
    model.get_input_embeddings().requires_grad_(not settings.freeze_embedding)
    batches = ShuffledBatches(rows.lengths(), settings.batch_size, seed, settings.gradient_accumulation)
    steps = epochs * math.ceil(len(rows) / settings.batch_size)
    groups, fused = _parameter_groups(model, settings.weight_decay), accelerator.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)
    renew_scaler(accelerator)  # or results would depend on their order
    # Not prepared by Accelerate, which would step it once for every process.
    schedule = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
    prepared, stepper, loader = accelerator.prepare(model, optimizer, data_loader(rows, batches, tokenizer))
    prepared.train()
    losses, count, step = torch.zeros((), device=accelerator.device), 0, 0
    try:
        for batches.epoch in range(epochs):
            for batch in loader:
                batch.pop("row")
                with accelerator.accumulate(prepared):
                    loss = prepared(**batch).loss
                    accelerator.backward(loss)
                    losses += loss.detach()
                    count += 1
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(prepared.parameters(), settings.max_grad_norm)
                    stepper.step()
                    stepper.zero_grad()
                if not accelerator.sync_gradients:
                    continue
                step += 1
                if not accelerator.optimizer_step_was_skipped:
                    schedule.step()
                if step % STEPS_BETWEEN_CHECKS == 0 or step == steps:
                    mean = float(accelerator.reduce(losses, "mean")) / count
                    if not math.isfinite(mean):
                        raise Diverged(f"the loss became {mean} within the first {step} of {steps} training steps")
                    on_step(step, steps, mean)
                    losses, count = torch.zeros_like(losses), 0
    finally:
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # gives the model its own forward back
        accelerator.free_memory()
        model.requires_grad_(True)
        model.eval()
    return time.perf_counter() - started


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Exempt biases and the scales of layer norms, which all have one dimension, from weight decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: EncodedRows, accelerator: Accelerator
) -> Tensor:
    """Compute outputs (rows, classes) in the model's own precision, on the CPU of every process, ordered as `rows`."""
    model = model.to(accelerator.device).eval()
    size = SCORING_BATCH - SCORING_BATCH % accelerator.num_processes or accelerator.num_processes
    # Not `accelerator.prepare`, which keeps the loader until `free_memory` walks through all objects of the process.
    loader = prepare_data_loader(
        data_loader(rows, SortedBatches(rows.lengths(), size), tokenizer),
        accelerator.device,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        split_batches=accelerator.split_batches,
        put_on_device=True,
    )
    result = torch.zeros(len(rows), model.config.num_labels)
    for batch in loader:
        numbers, _ = batch.pop("row"), batch.pop("labels")
        # Rows that fill up the last batch come twice and are put in the same place twice.
        numbers, outputs = accelerator.gather((numbers, model(**batch).logits.float()))
        result[numbers.cpu()] = outputs.cpu()
    if not torch.isfinite(result).all():
        raise Diverged("the model's outputs are no numbers")
    return result


def score(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, EncodedRows],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Compute the task's metrics on each split, whose suffix is added to their names."""
    metrics: dict[str, float] = {}
    for suffix, rows in splits.items():
        outputs = logits(model, tokenizer, rows, accelerator)
        predictions = outputs.argmax(1) if task.labels else outputs[:, 0].double()
        found = GlueMetric(task.name).compute(predictions=predictions.tolist(), references=rows.labels.tolist())
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    return metrics


def points(metrics: dict[str, float]) -> float:
    """Return 100 times the mean of a task's metrics."""
    return 100 * sum(metrics.values()) / len(metrics)
