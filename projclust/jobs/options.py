"""The options of every command, declared once. Imports no torch: what is wrong is refused before anything is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projclust.checkpoints.folder import check_target
from projclust.checkpoints.source import local_folder
from projclust.errors import OptionError
from projclust.glue.engine import Engine
from projclust.glue.settings import PER_TASK, Settings, parse_per_task, without_settings
from projclust.glue.tasks import parse_tasks
from projclust.glue.variants import BASELINES
from projclust.onnx_export.needs import Body
from projclust.options import (
    Choice,
    Device,
    HelpPanel,
    Options,
    Sensitivity,
    SizeOf,
    argument,
    like,
    nested,
    option,
    required,
)
from projclust.recipes.recipe import Recipe
from projclust.shapes import parse_size

DEFAULT_BITS = (2.0, 1.0, 0.75, 0.5, 0.35)

_REVISION = "The branch, tag or commit of a model on the Hub."
_OVERWRITE = "Replace an output folder that projclust wrote."


def _check_repo(repo: str) -> None:
    from projclust.checkpoints.hub import repo_url  # the Hub's client takes a while to import

    repo_url(repo)


def _check_id(name: str) -> None:
    from projclust.checkpoints.hub import is_model_id  # the Hub's client takes a while to import

    if not is_model_id(name):
        raise OptionError(f"`base_model` must be a model's name on the Hub, as user/name, not {name!r}")


def default_output(model: str, suffix: str) -> str:
    """Return the folder that is written where none is named: the model's name, as the user gave it, and a suffix."""
    folder = local_folder(model)
    return f"{Path(model if folder is None else os.path.abspath(folder)).name}-{suffix}"


class Dtype(Choice):
    """The dtypes that floats of a checkpoint are stored in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@dataclass(frozen=True)
class CompressOptions(Options):
    """The options of `projclust compress`."""

    model: str = argument("The Hub id or the local folder of a dense model.", "MODEL")
    recipe: Recipe = nested(Recipe())
    dtype: Dtype | None = option(
        None,
        "Store the floats of what stays dense, the body, in this dtype (as the source has them).",
        panel=HelpPanel.METHOD,
    )
    device: Device = option(Device.AUTO, "Where to compute.")
    output: str | None = option(
        None, "The folder to write (<name>-projclust).", "-o", "--output", metavar="DIR", panel=HelpPanel.OUTPUT
    )
    overwrite: bool = option(False, _OVERWRITE, panel=HelpPanel.OUTPUT)
    push_to_hub: str | None = option(
        None, "Push the folder to this repository afterwards, user/name.", metavar="REPO", panel=HelpPanel.HUB
    )
    private: bool = option(False, "With --push-to-hub: create a private repository.", panel=HelpPanel.HUB)
    base_model: str | None = option(
        None, "The model's name on the Hub, for the card, where MODEL is a folder.", metavar="ID", panel=HelpPanel.HUB
    )
    dry_run: bool = option(False, "Show the sizes; fit and write nothing.", panel=HelpPanel.OUTPUT)
    revision: str | None = option(None, _REVISION, panel=HelpPanel.HUB)
    twin_check: bool = option(
        True,
        "Refuse a model that answers otherwise than with the same rows in a dense table.",
        "--twin-check/--no-twin-check",
    )

    def check(self) -> None:
        """Refuse options that no checkpoint can be made with."""
        self.recipe.require_target()
        if not self.recipe.is_stored:
            raise OptionError(f"`method` {self.recipe.method} is a baseline of plan and glue-eval: it is not stored")
        if self.dtype is not None and (self.recipe.body is not None or self.recipe.size_of == SizeOf.MODEL):
            raise OptionError("`dtype` is of a body that stays floats: drop it, or drop `body` and `of` model")
        if self.base_model is not None:
            _check_id(self.base_model)
        if self.push_to_hub is not None:
            _check_repo(self.push_to_hub)
        elif self.private:
            raise OptionError("`private` is about the repository of `push_to_hub`: give both or neither")

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return Path(self.output or default_output(self.model, "projclust"))

    def check_folder(self) -> None:
        """Refuse a folder that must not or cannot be written; see `check_target`."""
        if not self.dry_run:
            check_target(self.folder, self.overwrite, local_folder(self.model))


class Protocol(Choice):
    """When the embedding is compressed: after a first training on the task, or before any."""

    PAPER = "paper"
    PRETRAINED = "pretrained"


@dataclass(frozen=True)
class GlueEvalOptions(Options):
    """The options of `projclust glue-eval`; what is None follows from the others."""

    model: str = argument("The Hub id or the local folder of a model, dense or compressed.", "MODEL")
    tasks: str = option(
        "all", "all (the nine of GLUE), or some: cola,sst2,...; demo needs no data.", panel=HelpPanel.DATA
    )
    glue_dir: str | None = option(
        None,
        "A folder of nyu-mll/glue's layout; else the one PROJCLUST_GLUE_DIR names, else the Hub.",
        metavar="DIR",
        panel=HelpPanel.DATA,
    )
    variants: str | None = option(
        None,
        f"Compare some of dense, svd, random, projective, best, {', '.join(BASELINES)}, also with own options: "
        "projective:k=3:ratio=0.8, projective:bits=0.5 (dense,svd,projective).",
        panel=HelpPanel.DATA,
    )
    recipe: Recipe = nested(Recipe(), without=("method", "seed"))
    protocol: Protocol | None = option(
        None, "paper: train, compress, train; pretrained: compress, train (paper).", panel=HelpPanel.TRAINING
    )
    epochs: int | None = like(
        Settings, "epochs", default=None, help="Train so many epochs after the compression (2; pretrained: 3)."
    )
    settings: Settings = nested(Settings(), without=("epochs",))
    per_task: tuple[str, ...] = option(
        (), "Settings for one task: cola:warmup=0:epochs=4. Repeatable.", metavar="SPEC", panel=HelpPanel.TRAINING
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "The seeds; there is one run for each.", panel=HelpPanel.DATA)
    device: Device = option(Device.AUTO, "Where to compute; cpu keeps off a GPU.")
    engine: str | None = option(
        None,
        "Measure cells as tasks of Ray: ray starts it on this machine, ray:auto or ray:HOST:PORT takes a cluster "
        "(here, one after the other).",
        metavar="ray[:ADDRESS]",
    )
    cpus_per_cell: int = option(1, "With --engine: the cores, and threads, of a cell.", least=1)
    gpus_per_cell: float = option(0.0, "With --engine: the GPUs of a cell, 0.5 for half of one.", least=0)
    output: str | None = option(
        None, "The folder of the results (<name>-glue).", "-o", "--output", metavar="DIR", panel=HelpPanel.OUTPUT
    )
    revision: str | None = option(None, _REVISION, panel=HelpPanel.HUB)

    def check(self) -> None:
        """Refuse tasks, seeds and settings that cannot be."""
        parse_tasks(self.tasks)
        parse_per_task(self.per_task)
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            raise OptionError(f"`seeds` takes numbers from 0 to {2**31 - 1}, with commas between them")
        self.ray  # noqa: B018, which refuses an engine that there is not

    @property
    def ray(self) -> Engine | None:
        """The engine that is asked for; None for this process."""
        if self.engine is None:
            return None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise OptionError("`engine` ray starts its own processes: drop torchrun, or drop `engine`")
        return Engine.parse(self.engine, self.cpus_per_cell, self.gpus_per_cell)

    @classmethod
    def flags_win(cls, values: dict[str, Any], on_line: set[str]) -> dict[str, Any]:
        """Let a flag, which is set for all tasks, replace what a file sets for one."""
        if "per_task" not in on_line:
            values["per_task"] = without_settings(tuple(values["per_task"] or ()), set(PER_TASK) & on_line)
        return values

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(self.output or default_output(self.model, "glue"))


@dataclass(frozen=True)
class PlanOptions(Options):
    """The options of `projclust plan`."""

    model: str = argument("The Hub id or the local folder of a dense model.", "MODEL")
    bits: tuple[float, ...] = option(
        DEFAULT_BITS,
        "Try these stored bits for a weight; one alone is the target.",
        metavar="LIST",
        above=0,
        below=32,
        panel=HelpPanel.SIZE,
    )
    size: str | None = like(Recipe, "size", help="The target: stored bytes of the embedding, as 400KB or 1.5MB.")
    probe: bool = option(False, "Also compare the model's outputs, on random sequences of its tokens.")
    exact: bool = option(False, "Code and fit the whole table instead of predicting; takes minutes.")
    weights: str | None = like(Recipe, "weights")
    weights_exponent: float | None = like(Recipe, "weights_exponent")
    sensitivity: Sensitivity | None = like(
        Recipe, "sensitivity", default=None, help="How errors count with codes auto (model with --probe, else none)."
    )
    seed: int = like(Recipe, "seed")
    device: Device = option(Device.AUTO, "Where to compute.")
    output: str | None = option(
        None, "The folder for the plan and its plot.", "-o", "--output", metavar="DIR", panel=HelpPanel.OUTPUT
    )
    overwrite: bool = option(False, _OVERWRITE, panel=HelpPanel.OUTPUT)
    revision: str | None = option(None, _REVISION, panel=HelpPanel.HUB)

    def check(self) -> None:
        """Refuse a plan without sizes, or with weights that are none."""
        if not self.bits and self.size is None:
            raise OptionError("give `bits` or `size`: there is no size to look at")
        if self.size is not None:
            parse_size(self.size)
        self.recipe  # noqa: B018, which refuses weights that are none

    @property
    def recipe(self) -> Recipe:
        """What all recipes of the plan share."""
        return Recipe(weights=self.weights, weights_exponent=self.weights_exponent, seed=self.seed)

    def check_folder(self) -> None:
        """Refuse a folder that must not or cannot be written; see `check_target`."""
        if self.output is not None:
            check_target(Path(self.output), self.overwrite, local_folder(self.model))


@dataclass(frozen=True)
class ExpandOptions(Options):
    """The options of `projclust expand`."""

    path: str = argument("The folder or the Hub id of a compressed model.", "PATH")
    output: str = required("The folder to write.", "-o", "--output", metavar="DIR", panel=HelpPanel.OUTPUT)
    overwrite: bool = option(False, _OVERWRITE, panel=HelpPanel.OUTPUT)
    revision: str | None = option(None, _REVISION, panel=HelpPanel.HUB)

    def check_folder(self) -> None:
        """Refuse a folder that must not or cannot be written; see `check_target`."""
        check_target(Path(self.output), self.overwrite, local_folder(self.path))


class Target(Choice):
    """What a model is exported to."""

    ONNX = "onnx"


@dataclass(frozen=True)
class ExportOptions(Options):
    """The options of `projclust export`."""

    model: str = argument("The Hub id or the local folder of a model, compressed or dense.", "MODEL")
    output: str = required("The folder to write.", "-o", "--output", metavar="DIR", panel=HelpPanel.OUTPUT)
    to: Target = option(Target.ONNX, "The kind of file.", panel=HelpPanel.OUTPUT)
    body: str = option(
        "float32",
        "The weights beside the table: float32 (model.onnx), int8 (model_quantized.onnx, transformers.js's q8), int4 "
        "(model_q4.onnx), or several with commas between them.",
        metavar="LIST",
        panel=HelpPanel.OUTPUT,
    )
    overwrite: bool = option(False, _OVERWRITE, panel=HelpPanel.OUTPUT)
    revision: str | None = option(None, _REVISION, panel=HelpPanel.HUB)

    def check(self) -> None:
        """Refuse bodies that there are not."""
        self.bodies  # noqa: B018, which refuses them

    @property
    def bodies(self) -> list[Body]:
        """The bodies that are asked for, each once, in their order."""
        named = {Body.of(name.strip(), "body") for name in self.body.split(",")}
        return [body for body in Body if body in named]

    def check_folder(self) -> None:
        """Refuse a folder that must not or cannot be written; see `check_target`."""
        check_target(Path(self.output), self.overwrite, local_folder(self.model))


@dataclass(frozen=True)
class InspectOptions(Options):
    """The options of `projclust inspect`."""

    path: str = argument("The folder or the Hub id of a dense or compressed model.", "PATH")
    revision: str | None = option(None, _REVISION, panel=HelpPanel.HUB)


@dataclass(frozen=True)
class PushOptions(Options):
    """The options of `projclust push`."""

    path: str = argument("A folder that projclust wrote.", "PATH")
    repo: str = argument("The repository on the Hub, user/name.", "REPO")
    private: bool = option(False, "Create the repository as a private one.", panel=HelpPanel.HUB)
    dry_run: bool = option(False, "List the files; push nothing.", panel=HelpPanel.OUTPUT)

    def check(self) -> None:
        """Refuse a name that no repository can have."""
        _check_repo(self.repo)


@dataclass(frozen=True)
class ReportOptions(Options):
    """The options of `projclust report`."""

    folders: tuple[str, ...] = argument("The folders that `projclust glue-eval` wrote.", "DIR")
    output: str | None = option(
        None, "The report's folder (the DIR, if only one).", "-o", "--output", metavar="OUT", panel=HelpPanel.OUTPUT
    )
    card: str | None = option(
        None, "Also put results into this compressed folder's model card.", metavar="FOLDER", panel=HelpPanel.OUTPUT
    )
    open: bool = option(False, "Open the page in the browser, where there is one.", panel=HelpPanel.OUTPUT)
