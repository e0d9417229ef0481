"""What several jobs need: hooks, a dense model, devices by name, other processes, and the versions behind a result."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

import projclust
from projclust.checkpoints.load import Loaded, load_checkpoint
from projclust.checkpoints.source import CONFIG, quantization_method, read_json, resolve_checkpoint
from projclust.checkpoints.static import as_transformers
from projclust.errors import CheckpointError, OptionError, ProjclustError
from projclust.hf.swap import input_embedding, tied_names
from projclust.results.rows import Row
from projclust.shapes import DenseShape


@dataclass(frozen=True)
class Hooks:
    """What a caller may watch; each job calls those it has something to tell.

    Attributes:
        stage: called with what begins.
        warn: called with what the user should know.
        step: called with (restart, step, cost) of a fit, or (step, steps, loss) of a training.
        rows: called with how many rows of a table are coded, and how many there are.
        cell: called with a measurement, how many are done, and how many there are.
        upload: called when an upload begins, for which the Hub's client shows bars of its own.
    """

    stage: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    step: Callable[[int, int, float], None] = lambda first, second, value: None
    rows: Callable[[int, int], None] = lambda done, total: None
    cell: Callable[[Row, int, int], None] = lambda row, done, total: None
    upload: Callable[[], None] = lambda: None


SILENT = Hooks()


@dataclass(frozen=True)
class Dense:
    """A dense model to compress: its folder and checkpoint, and its input embedding's name and weight (n, d).

    `tied` are the names of the modules that are tied to the embedding.
    """

    folder: Path
    loaded: Loaded
    name: str
    table: Tensor
    tied: list[str]

    @property
    def shape(self) -> DenseShape:
        """The shape of the table."""
        return DenseShape(len(self.table), self.table.shape[1], str(self.table.dtype).removeprefix("torch."))


def load_dense(model: str, revision: str | None, seed: int, stage: Callable[[str], None]) -> Dense:
    """Load a dense checkpoint; the seed decides the parameters that it lacks."""
    source = as_transformers(resolve_checkpoint(model, revision))
    stage(f"reading {model}")
    method = quantization_method(read_json(source / CONFIG))
    if method is not None:
        hint = "projclust expand makes it dense again" if method == "projclust" else "start from the dense model"
        raise ProjclustError(f"{model} is compressed already ({method}): {hint}")
    torch.manual_seed(seed)
    loaded = load_checkpoint(source)
    name, embedding = input_embedding(loaded.model)
    if f"{name}.weight" in loaded.missing:
        raise CheckpointError(f"{model} holds no weights for its embedding {name}")
    return Dense(source, loaded, name, embedding.weight.detach(), tied_names(loaded.model))


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` is CUDA where there is any."""
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("`device` cuda: this torch sees no CUDA device; use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Processes:
    """The processes that share a fit, or this one alone without a group; only the main one writes."""

    group: "dist.ProcessGroup | None"
    device: torch.device
    is_main: bool = True


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun or `accelerate launch` started, if there are any, to compute on `device`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(None, device)
        return
    state = PartialState(cpu=device.type == "cpu")
    own = device if device.type == "cpu" else state.device
    yield Processes(dist.group.WORLD, own, state.is_main_process)
    # Not after an error: the others may be waiting, and torchrun ends them.
    state.destroy_process_group()


def versions(*more: str) -> dict[str, str]:
    """Return the versions of projclust, Python, the packages that bear on every job's result, and `more`."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", *more)}
    return {"projclust": projclust.__version__, "python": platform.python_version(), **packages}
