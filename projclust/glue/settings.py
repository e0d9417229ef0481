"""How to fine-tune: the settings of a run, and those that differ for single tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from projclust.errors import OptionError, ProjclustError
from projclust.glue.tasks import TASKS
from projclust.options import Choice, HelpPanel, Options, option, part_of, read_value


class Precision(Choice):
    """The precision of training; scores are always computed in the model's own."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"


@dataclass(frozen=True)
class Settings(Options):
    """Every setting of the fine-tuning that bears on a score.

    After the warm-up the learning rate falls linearly to 0. The weight decay applies to weight matrices only.
    """

    baseline_epochs: int = option(
        3, "Train so many epochs before the compression, with --protocol paper.", least=0, panel=HelpPanel.TRAINING
    )
    epochs: int = option(2, "Train so many epochs after the compression.", least=0, panel=HelpPanel.TRAINING)
    learning_rate: float = option(
        3e-5, "Train with this learning rate of AdamW after the warm-up.", above=0, below=inf, panel=HelpPanel.TRAINING
    )
    batch_size: int = option(32, "Use so many rows in one step, over all processes.", least=1, panel=HelpPanel.TRAINING)
    gradient_accumulation: int = option(
        1,
        "Cut a batch into so many parts, to save memory; an epoch's last batch, if not full, weighs less.",
        least=1,
        panel=HelpPanel.TRAINING,
    )
    max_length: int = option(128, "Cut rows to at most so many tokens.", least=4, panel=HelpPanel.TRAINING)
    warmup: float = option(
        0.06, "Let the learning rate rise during this fraction of the steps.", least=0, most=1, panel=HelpPanel.TRAINING
    )
    weight_decay: float = option(
        0.0, "Train with this weight decay of AdamW.", least=0, below=inf, panel=HelpPanel.TRAINING
    )
    max_grad_norm: float = option(
        1.0, "Scale larger gradients down to this norm.", above=0, below=inf, panel=HelpPanel.TRAINING
    )
    mixed_precision: Precision = option(Precision.NO, "Train in this precision.", panel=HelpPanel.TRAINING)
    freeze_embedding: bool = option(
        False, "Do not train the embedding after the compression.", panel=HelpPanel.TRAINING
    )
    limit: int | None = option(
        None, "For a quick look, use only so many rows of each split; reports say so.", least=1, panel=HelpPanel.DATA
    )


# What may differ between the tasks of one run; the rest belongs to the whole process.
PER_TASK = ("baseline_epochs", "epochs", "learning_rate", "batch_size", "max_length", "warmup", "weight_decay", "limit")


def parse_per_task(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Read the settings of single tasks from texts like ``cola:learning-rate=1e-4:epochs=4``."""
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
    """Drop some of the settings from such texts."""
    parts = [text.split(":") for text in texts]
    return tuple(":".join(p for p in own if p.partition("=")[0].replace("-", "_") not in names) for own in parts)


def settings_for(task: str, settings: Settings, per_task: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Merge the settings of all tasks with those of one; values that it cannot have are refused by its name."""
    try:
        return replace(settings, **per_task.get(task, {}))
    except OptionError as error:
        raise OptionError(f"{task}: {error}") from None
