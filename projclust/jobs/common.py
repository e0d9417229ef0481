"""What several jobs need: row weights and devices by name, other processes, and the versions behind a result."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

import projclust
from projclust.errors import ProjclustError
from projclust.hf.checkpoint import load_tokenizer
from projclust.weights import read_counts

UNIFORM = "uniform"


def check_weights(weights: str) -> None:
    """Refuse what `--weights` does not know.

    Raises:
        ProjclustError: naming what it knows.
    """
    if weights != UNIFORM and not (weights.startswith("counts:") and weights != "counts:"):
        raise ProjclustError("--weights must be uniform or counts:FILE")


def read_weights(weights: str, checkpoint: Path, n_rows: int) -> Tensor | None:
    """The row weights that `--weights` names: None for uniform ones, else (n_rows,) float64.

    Raises:
        ProjclustError: the file of counts is missing or not one, or the checkpoint lacks the tokenizer it needs.
    """
    if weights == UNIFORM:
        return None
    counts = Path(weights.removeprefix("counts:"))
    return read_counts(counts, n_rows, lambda: dict(load_tokenizer(checkpoint).get_vocab()))


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is CUDA where there is any.

    Raises:
        ProjclustError: there is no such device here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ProjclustError("--device must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ProjclustError("--device cuda: this torch sees no CUDA device; use --device cpu")
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
    """Of projclust, Python and the packages that bear on a result: those of every job, and `more`."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", *more)}
    return {"projclust": projclust.__version__, "python": platform.python_version(), **packages}
