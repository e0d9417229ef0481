"""What to measure on: the table of a checkpoint, or a synthetic one where there are no weights; the tasks of GLUE."""

import argparse
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

GROUPS = 16
_BLOCK_ROWS = 16384
# Of a synthetic table: how fast the spectrum of a group falls, and how long its mean is. With these, fits to 30,527 x
# 768 leave about what they leave of MPNet's table (0.15 at 40% off).
_DECAY, _MEAN = 0.3, 0.5


def read_table(folder: Path) -> Tensor:
    """The word embedding of a BERT-like checkpoint."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith("word_embeddings.weight"))  # noqa: SIM118
        table: Tensor = file.get_tensor(name)
    return table


def synthetic_table(n: int, d: int, seed: int = 0, device: str = "cpu") -> Tensor:
    """(n, d) float32 rows of groups that have means and falling spectra of their own, of unequal lengths; on the CPU.

    Made on `device`, whose random numbers are its own.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    means = _MEAN * normal(GROUPS, d) / d**0.5
    spectrum = torch.arange(1, d + 1, device=device).pow(-_DECAY)
    spectrum /= spectrum.norm()
    mixes = spectrum.unsqueeze(1) * normal(GROUPS, d, d) / d**0.5
    groups = torch.randint(GROUPS, (n,), generator=generator, device=device).sort().values
    table = torch.empty(n, d)
    for group in range(GROUPS):
        members = (groups == group).nonzero().squeeze(1)
        for block in members.split(_BLOCK_ROWS):
            lengths = 1 + 0.2 * normal(len(block), 1)
            table[block.cpu()] = (lengths * (means[group] + normal(len(block), d) @ mixes[group])).cpu()
    return table[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def zipf_weights(n: int) -> Tensor:
    """(n,) float64 frequencies by rank, as Zipf's law has it: what stands for words where there is no tokenizer."""
    return 1 / torch.arange(1, n + 1, dtype=torch.float64)


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Let the command line choose the size of a synthetic table."""
    parser.add_argument("--rows", type=int, metavar="N", help="The number of rows of a synthetic table.")
    parser.add_argument("--columns", type=int, metavar="D", help="The number of columns of a synthetic table.")


def add_glue_option(parser: argparse.ArgumentParser) -> None:
    """Let the command line say where the tasks of GLUE are."""
    parser.add_argument(
        "--glue-dir",
        default=os.environ.get("PROJCLUST_GLUE_DIR", "nyu-mll/glue"),
        help="The folder of the GLUE tasks; the default is PROJCLUST_GLUE_DIR, or else the Hub's copy.",
    )
