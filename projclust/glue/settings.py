"""How to fine-tune: the settings of a run, and those that differ for single tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from projclust.errors import OptionError, ProjclustError
from projclust.glue.tasks import TASKS
from projclust.options import Choice, Options, option, part_of, read_value


class Precision(Choice):
    """The precision of training; scores are always computed in the model's own."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"


@dataclass(frozen=True)
class Settings(Options):
    """Every setting of the fine-tuning that bears on a score.

    Batches are of all processes and accumulated parts together; the learning rate falls linearly to 0 after the
    warm-up; weight decay is for weight matrices only.
    """

    baseline_epochs: int = option(3, "The epochs of training before the compression, with --protocol paper.", least=0)
    epochs: int = option(2, "The epochs of training after the compression.", least=0)
    learning_rate: float = option(3e-5, "The learning rate of AdamW after the warm-up.", above=0, below=inf)
    batch_size: int = option(32, "The rows of one step, over all processes.", least=1)
    gradient_accumulation: int = option(
        1,
        "The parts that a batch is cut into, to save memory; an epoch's last batch, if not full, weighs less.",
        least=1,
    )
    max_length: int = option(128, "The most tokens of a row; longer ones are cut.", least=4)
    warmup: float = option(0.06, "The fraction of the steps in which the learning rate rises.", least=0, most=1)
    weight_decay: float = option(0.0, "The weight decay of AdamW.", least=0, below=inf)
    max_grad_norm: float = option(1.0, "Larger gradients are scaled down to this norm.", above=0, below=inf)
    mixed_precision: Precision = option(Precision.NO, "The precision of the training.")
    freeze_embedding: bool = option(False, "Do not train the embedding after the compression.")
    limit: int | None = option(
        None, "Use so many rows of each split only, for a quick look; marked in every output.", least=1
    )


# What may differ between the tasks of one run; the rest belongs to the whole process.
PER_TASK = ("baseline_epochs", "epochs", "learning_rate", "batch_size", "max_length", "warmup", "weight_decay", "limit")

Overrides = Mapping[str, Mapping[str, Any]]


def parse_per_task(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Settings of single tasks from texts like ``cola:learning-rate=1e-4:epochs=4``.

    Raises:
        ProjclustError: there is no such task or setting, or a value is of another kind.
    """
    result: dict[str, dict[str, Any]] = {}
    for text in texts:
        task, *pairs = text.split(":")
        if task not in TASKS:
            raise ProjclustError(f"--per-task {text}: there is no task {task!r}")
        for pair in pairs:
            option_name, separator, value = pair.partition("=")
            name = option_name.replace("-", "_")
            if name not in PER_TASK or not separator:
                known = ", ".join(known.replace("_", "-") for known in PER_TASK)
                raise ProjclustError(f"--per-task {text}: after the task come name=value pairs of {known}")
            try:
                result.setdefault(task, {})[name] = read_value(part_of(Settings, name), value)
            except ValueError:
                raise ProjclustError(f"--per-task {text}: {option_name} must be a number, not {value!r}") from None
    return result


def without_settings(texts: tuple[str, ...], names: set[str]) -> tuple[str, ...]:
    """Such texts without some of the settings."""
    kept = (
        [part for part in text.split(":") if part.partition("=")[0].replace("-", "_") not in names] for text in texts
    )
    return tuple(":".join(parts) for parts in kept)


def settings_for(task: str, settings: Settings, per_task: Overrides) -> Settings:
    """The settings of one task.

    Raises:
        OptionError: one of its own cannot be.
    """
    try:
        return replace(settings, **per_task.get(task, {}))
    except OptionError as error:
        raise OptionError(f"{task}: {error}") from None
