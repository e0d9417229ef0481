"""A large embedding table with the spectra of a real one: what the solver meets in models of many languages.

    python benchmarks/large_table.py models/mpnet models/large [--rows 262144] [--columns 640]

The real table's rows are cut into 64 groups by direction. A new row is its group's mean plus a Gaussian with the
group's covariance, in the leading principal directions of the whole, so groups, lengths and spectra are real.
"""

import argparse
from pathlib import Path

import torch
from bench_tables import read_table
from safetensors.torch import save_file
from torch import Tensor

from projclust.clustering.rows import Rows
from projclust.clustering.seeding import initial_labels
from projclust.options import Init

GROUPS = 64


def make_table(real: Tensor, n: int, d: int, seed: int = 0) -> Tensor:
    """(n, d) float32 rows like those of `real` (m, at least d)."""
    generator = torch.Generator().manual_seed(seed)
    (labels,) = initial_labels(Init.SPHERICAL, Rows.of(real), GROUPS, 1, [generator])
    principal = torch.linalg.eigh(real.double().T @ real.double())[1][:, -d:].flip(1).float()
    table = torch.empty(n, d)
    shuffled = torch.randperm(n, generator=generator)
    ends = (torch.bincount(labels, minlength=GROUPS).cumsum(0) * n // len(real)).tolist()
    for group, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        members = real[labels == group] @ principal
        mean = members.mean(0)
        noise = torch.randn(end - start, len(members), generator=generator) / len(members) ** 0.5
        table[shuffled[start:end]] = mean + noise @ (members - mean)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder of the checkpoint with the real table.")
    parser.add_argument("target", type=Path, help="The folder in which to write the large table.")
    parser.add_argument("--rows", type=int, default=262144, help="The number of its rows.")
    parser.add_argument("--columns", type=int, default=640, help="The number of its columns.")
    arguments = parser.parse_args()
    table = make_table(read_table(arguments.folder), arguments.rows, arguments.columns)
    arguments.target.mkdir(parents=True, exist_ok=True)
    save_file({"embeddings.word_embeddings.weight": table}, arguments.target / "model.safetensors")
    print(f"written: {arguments.target}, {table.shape[0]} x {table.shape[1]}")
