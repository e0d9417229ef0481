"""How to fine-tune: the settings of a run, and those that differ for single tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from projclust.errors import ProjclustError

from .tasks import TASKS


@dataclass(frozen=True)
class Settings:
    """Every setting of the fine-tuning that bears on a score.

    Attributes:
        baseline_epochs: training of the dense model before its embedding is compressed (protocol `paper`).
        epochs: training after the compression.
        learning_rate: the highest, reached after the warm-up; from there it falls linearly to 0.
        batch_size: rows in each step of the optimizer, over all processes and accumulated parts together.
        gradient_accumulation: parts each batch is cut into, to save memory.
        max_length: tokens of a row, longer ones are cut.
        warmup: fraction of the steps before the highest learning rate.
        weight_decay: of AdamW, on weight matrices only.
        max_grad_norm: gradients are scaled down to this norm.
        mixed_precision: "no", "fp16" or "bf16", for training; scores are always computed in the model's own precision.
        freeze_embedding: keep the input embedding as the compression left it.
        limit: at most so many rows of each split.
    """

    baseline_epochs: int = 3
    epochs: int = 2
    learning_rate: float = 3e-5
    batch_size: int = 32
    gradient_accumulation: int = 1
    max_length: int = 128
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    freeze_embedding: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        lowest = {"baseline_epochs": 0, "epochs": 0, "batch_size": 1, "gradient_accumulation": 1, "max_length": 4}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ProjclustError(f"{_flag(name)} must be at least {least}, not {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ProjclustError(f"--limit must be at least 1, not {self.limit}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ProjclustError(f"{_flag(name)} must be a positive number, not {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ProjclustError(f"--warmup is a fraction of the steps between 0 and 1, not {self.warmup}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ProjclustError(f"--weight-decay must be 0 or more, not {self.weight_decay}")


# What may differ between the tasks of one run; the rest belongs to the whole process.
PER_TASK = ("baseline_epochs", "epochs", "learning_rate", "batch_size", "max_length", "warmup", "weight_decay", "limit")

Overrides = Mapping[str, Mapping[str, Any]]


def parse_per_task(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Settings of single tasks from texts like ``cola:learning-rate=1e-4:epochs=4``.

    Raises:
        ProjclustError: no such task or setting, or a value of another kind.
    """
    kinds = {field.name: float if field.type is float or field.type == "float" else int for field in fields(Settings)}
    result: dict[str, dict[str, Any]] = {}
    for text in texts:
        task, *pairs = text.split(":")
        if task not in TASKS:
            raise ProjclustError(f"--per-task {text}: there is no task {task!r}")
        for pair in pairs:
            option, separator, value = pair.partition("=")
            name = option.replace("-", "_")
            if name not in PER_TASK or not separator:
                known = ", ".join(_flag(name)[2:] for name in PER_TASK)
                raise ProjclustError(f"--per-task {text}: after the task come name=value pairs of {known}")
            try:
                result.setdefault(task, {})[name] = kinds[name](value)
            except ValueError:
                raise ProjclustError(f"--per-task {text}: {option} must be a number, not {value!r}") from None
    return result


def without_settings(texts: tuple[str, ...], names: set[str]) -> tuple[str, ...]:
    """Such texts without some of the settings."""
    kept = (
        [part for part in text.split(":") if part.partition("=")[0].replace("-", "_") not in names] for text in texts
    )
    return tuple(":".join(parts) for parts in kept)


def settings_for(task: str, settings: Settings, per_task: Overrides) -> Settings:
    """The settings of one task."""
    return replace(settings, **per_task.get(task, {}))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
