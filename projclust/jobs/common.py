"""What several jobs need: row weights and devices by their names, and the versions a result was made with."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch
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


def versions(*more: str) -> dict[str, str]:
    """Of projclust, Python and the packages that bear on a result: those of every job, and `more`."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", *more)}
    return {"projclust": projclust.__version__, "python": platform.python_version(), **packages}
