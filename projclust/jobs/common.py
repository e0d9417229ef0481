"""What several jobs need: row weights and devices by name, other processes, and the versions behind a result."""

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
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.checkpoint import (
    CONFIG,
    Loaded,
    load_checkpoint,
    load_tokenizer,
    quantization_method,
    read_json,
    resolve_checkpoint,
)
from projclust.hf.config import AUTO
from projclust.hf.swap import input_embedding
from projclust.weights import DEFAULT_EXPONENT, read_counts, row_weights, text_frequencies, word_frequencies

UNIFORM = "uniform"
WORDFREQ = "wordfreq"


def load_dense(model: str, revision: str | None, seed: int, stage: Callable[[str], None]) -> tuple[Path, Loaded, str]:
    """A dense checkpoint: its folder, what it holds, and the name of its embedding.

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
    name = input_embedding(loaded.model)[0]
    if f"{name}.weight" in loaded.missing:
        raise CheckpointError(f"{model} holds no weights for its embedding {name}")
    return source, loaded, name


def default_weights(codes: str | None) -> str:
    """The `--weights` that go with codes where none are given."""
    return WORDFREQ if codes == AUTO else UNIFORM


def check_weights(weights: str) -> None:
    """Refuse what `--weights` does not know.

    Raises:
        ProjclustError: naming what it knows.
    """
    source, _, detail = weights.partition(":")
    if weights not in (UNIFORM, WORDFREQ) and not (source in (WORDFREQ, "counts", "text") and detail):
        raise ProjclustError("--weights must be uniform, wordfreq, wordfreq:LANG,..., counts:FILE or text:SOURCE")


def weights_exponent(weights: str, exponent: float | None) -> float | None:
    """The power to which the frequencies that `--weights` names are raised; None for uniform weights.

    Unless it is given it is DEFAULT_EXPONENT, but 1 for counts, whose numbers are the weights as they stand.
    """
    source = weights.partition(":")[0]
    if source == UNIFORM:
        return None
    if exponent is not None:
        return exponent
    return 1.0 if source == "counts" else DEFAULT_EXPONENT


def read_weights(weights: str, checkpoint: Path, n_rows: int, exponent: float | None = None) -> Tensor | None:
    """The row weights that `--weights` names: None for uniform ones, else (n_rows,) float64, the largest being 1.

    Args:
        weights: one that `check_weights` accepts.
        checkpoint: the folder of the model, for its tokenizer.
        n_rows: rows of the table.
        exponent: the power to which frequencies are raised, see `weights_exponent`.

    Raises:
        ProjclustError: the file or text is missing or not one, the language is unknown, the exponent is not above 0, or
            the checkpoint lacks the tokenizer it needs.
    """
    source, _, detail = weights.partition(":")
    power = weights_exponent(weights, exponent)
    if power is None:
        return None
    match source:
        case "counts":
            frequencies = read_counts(Path(detail), n_rows, lambda: dict(load_tokenizer(checkpoint).get_vocab()))
        case "text":
            frequencies = text_frequencies(detail, load_tokenizer(checkpoint), n_rows)
        case _:
            languages = detail.split(",") if detail else ["en"]
            frequencies = word_frequencies(load_tokenizer(checkpoint), n_rows, languages)
    return row_weights(frequencies, power)


def chosen_weights(
    weights: str | None,
    codes: str | None,
    checkpoint: Path,
    n_rows: int,
    exponent: float | None,
    stage: Callable[[str], None],
    warn: Callable[[str], None],
) -> tuple[str, Tensor | None]:
    """The row weights, by name and as `read_weights` gives them, that the user named or that go with the codes.

    Where the default ones cannot be made, for want of a tokenizer say, they are uniform, with a warning.

    Raises:
        ProjclustError: `read_weights`'s, of weights that the user named.
    """
    name = default_weights(codes) if weights is None else weights
    if name == UNIFORM and exponent is not None:
        raise ProjclustError("uniform weights have no exponent: drop --weights-exponent, or name other --weights")
    if name != UNIFORM:
        stage(f"weighing rows by {name}")
    try:
        return name, read_weights(name, checkpoint, n_rows, exponent)
    except ProjclustError as error:
        if weights is not None or exponent is not None:
            raise
        warn(f"all rows weigh the same, for want of word frequencies: {error}")
        return UNIFORM, None


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
