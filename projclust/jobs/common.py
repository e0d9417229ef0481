"""What several jobs need: a dense model, devices by name, other processes, and the versions behind a result."""

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
from projclust.errors import CheckpointError, OptionError, ProjclustError
from projclust.hf.swap import input_embedding
from projclust.shapes import DenseShape


@dataclass(frozen=True)
class Dense:
    """A dense model to compress.

    Attributes:
        folder: where it was read from.
        loaded: what the checkpoint holds.
        name: the name of its input embedding.
        table: (n, d) the embedding's weight.
    """

    folder: Path
    loaded: Loaded
    name: str
    table: Tensor

    @property
    def shape(self) -> DenseShape:
        """The shape of the table."""
        return DenseShape(len(self.table), self.table.shape[1], str(self.table.dtype).removeprefix("torch."))


def load_dense(model: str, revision: str | None, seed: int, stage: Callable[[str], None]) -> Dense:
    """Load a dense checkpoint.

    Args:
        seed: of parameters that the checkpoint lacks.

    Raises:
        ProjclustError: there is none, it is compressed already, or it holds no weights for its embedding.
    """
    source = resolve_checkpoint(model, revision)
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
    return Dense(source, loaded, name, embedding.weight.detach())


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is CUDA where there is any.

    Raises:
        OptionError: there is no such device here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("`device` cuda: this torch sees no CUDA device; use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun or `accelerate launch` started, or this one alone.

    Attributes:
        group: to share a fit among them; None for one process.
        device: this process's.
        is_main: whether this is the one that writes.
    """

    group: "dist.ProcessGroup | None"
    device: torch.device
    is_main: bool = True


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes, if there are any, for computing on `device`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(None, device)
        return
    state = PartialState(cpu=device.type == "cpu")
    own = device if device.type == "cpu" else state.device
    yield Processes(dist.group.WORLD, own, state.is_main_process)
    # Not after an error: the others may be waiting, and torchrun ends them.
    state.destroy_process_group()


def versions(*more: str) -> dict[str, str]:
    """The versions of projclust, Python and the packages that bear on a result: those of every job, and `more`."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", *more)}
    return {"projclust": projclust.__version__, "python": platform.python_version(), **packages}
