"""Train the tables of projclust/coding/codebooks.safetensors on Gaussian samples, and print their distortions.

    python scripts/train_codebooks.py [--write]

Trellis codes by generalised Lloyd iterations: encode by Viterbi search, then let every state's values be the means of
what it coded. Scalar ones by Lloyd and Max's iterations over the density itself. Distortions are measured on other
samples than the training's, and without the first bits of a row, where the trellis does not have all its states yet.
The package relies on the very tables it comes with: --write makes another format.
"""

import argparse
import math

import torch
from safetensors.torch import save_file
from torch import Tensor

from projclust.coding import trellis
from projclust.coding.codebooks import CODEBOOKS_FILE, FIRST_TABLE, KINDS, STATE_BITS, STATES, Kind
from projclust.coding.trellis import search

STEPS, ROWS, ITERATIONS = 48, 8000, 40


def trained_trellis(number: int, tables: Tensor, generator: torch.Generator) -> Tensor:
    """(values, 256) of a trellis code; `tables` are those in use, and are changed."""
    kind = KINDS[number]
    samples = torch.randn(ROWS, STEPS * kind.values, generator=generator)
    book = tables[FIRST_TABLE[number] : FIRST_TABLE[number] + kind.values]
    book.copy_(start(kind, generator))
    skip = STATE_BITS // kind.bits
    for _ in range(ITERATIONS):
        states = search(samples, [number] * samples.shape[1], torch.ones(samples.shape[1]))[:, skip:].long().flatten()
        values = samples.view(ROWS, STEPS, kind.values)[:, skip:].reshape(-1, kind.values)
        counts = torch.zeros(STATES).index_add_(0, states, torch.ones(len(states)))
        sums = torch.zeros(STATES, kind.values).index_add_(0, states, values)
        used = counts > 3
        book[:, used] = (sums[used] / counts[used, None]).T
    book.copy_(book.half())
    return book.clone()


def start(kind: Kind, generator: torch.Generator) -> Tensor:
    """Values to start from: Gaussian ones, or for one value a step quantiles that a hash spreads over the states."""
    if kind.values > 1:
        return torch.randn(kind.values, STATES, generator=generator)
    order = torch.arange(STATES) * (int(STATES * 0.618) | 1) % STATES
    quantiles = math.sqrt(2) * torch.erfinv(2 * (order + 0.5) / STATES - 1)
    return quantiles.unsqueeze(0) * math.sqrt(1 - 4.0**-kind.rate)


def scalar_levels(levels: int) -> tuple[Tensor, float]:
    """(levels,) of the Lloyd-Max quantizer of the standard Gaussian, and its distortion."""
    x = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2)
    density /= density.sum()
    values = math.sqrt(2) * torch.erfinv(2 * (torch.arange(levels, dtype=torch.float64) + 0.5) / levels - 1)
    for _ in range(2000):
        nearest = torch.bucketize(x, (values[1:] + values[:-1]) / 2)
        mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, nearest, density)
        values = torch.zeros(levels, dtype=torch.float64).index_add_(0, nearest, density * x) / mass
    return values, float((density * (x - values[nearest]).square()).sum())


def distortion(number: int, tables: Tensor) -> float:
    """The mean squared error of a trained code on fresh samples."""
    kind = KINDS[number]
    samples = torch.randn(4000, 2 * STEPS * kind.values, generator=torch.Generator().manual_seed(99))
    states = search(samples, [number] * samples.shape[1], torch.ones(samples.shape[1])).long()
    book = tables[FIRST_TABLE[number] : FIRST_TABLE[number] + kind.values]
    decoded = book[:, states].permute(1, 2, 0).reshape(samples.shape)
    skip = STATE_BITS // kind.bits * kind.values
    return float((samples - decoded)[:, skip:].square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="Replace the tables in the package.")
    write = parser.parse_args().write
    generator = torch.Generator().manual_seed(0)
    tables = torch.zeros(sum(kind.values for kind in KINDS), STATES)
    # What `search` decodes by while they are trained.
    trellis.decode_tables = lambda device: tables  # type: ignore[assignment, attr-defined]
    stored = {}
    for number, kind in enumerate(KINDS):
        if kind.name.startswith("trellis"):
            stored[kind.name] = trained_trellis(number, tables, generator).half()
            found = distortion(number, tables)
        elif kind.name.startswith("scalar"):
            values, found = scalar_levels(1 << kind.bits)
            stored[kind.name] = values.half().unsqueeze(0)
        else:
            continue
        print(f"{kind.name:12} {found:.4f}, bound {4.0**-kind.rate:.4f}, in the package {kind.distortion}", flush=True)
    if write:
        save_file(stored, CODEBOOKS_FILE)


if __name__ == "__main__":
    main()
