"""What commands hold in memory at their peak, in tables: multiples of the embedding's float32 bytes. Linux only.

    python benchmarks/memory.py [MODEL] [--rows 120000] [--columns 384]

Each command runs in a process of its own, first on a tiny model, after which everything is imported and the libraries
have made their buffers; what it then holds is not counted. The peak is that of all resident memory, with the pages of
the mapped checkpoint, for the table is among them; beside it stands what of it is anonymous, which a system short of
memory cannot read again from a file. Memory that the allocator keeps counts, as it does for users.

Without MODEL it is a DistilBERT of one layer, all of it but a fiftieth the table, of synthetic rows, with uniform
weights, for it has no tokenizer. A MODEL has its default weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_tables import add_size_options, synthetic_table
from process_memory import Memory, peak_memory
from transformers import AutoModel, DistilBertConfig, DistilBertModel
from transformers.utils import logging

ROWS, WIDTH = 120_000, 384
# Each as on the command line, without its model.
COMMANDS = ("compress --bits 0.5", "compress --k 5 --ratio 0.4", "plan", "plan --probe", "expand")
_TINY = (2000, 64)


@dataclass(frozen=True)
class Peak:
    """The most that a command held, in multiples of the table's float32 bytes beyond what its process held before.

    Attributes:
        resident: all, the pages of files included.
        anonymous: what is not pages of files.
        megabytes: of the whole process.
    """

    resident: float
    anonymous: float
    megabytes: float


def save_model(folder: Path, n: int, d: int) -> Path:
    """Write a DistilBERT of one layer with a synthetic table, n x d; returns its folder."""
    torch.manual_seed(0)
    shape = {"dim": d, "hidden_dim": d, "n_layers": 1, "n_heads": 4, "max_position_embeddings": 64}
    model = DistilBertModel(DistilBertConfig(vocab_size=n, **shape))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(synthetic_table(n, d))
    model.save_pretrained(folder)
    return folder


def measured(
    command: str,
    model: Path,
    tiny: Path,
    table_bytes: int,
    weights: str | None = "uniform",
    environment: dict[str, str] | None = None,
) -> Peak:
    """What a command takes with a model of so many bytes of table, after a run with a tiny one.

    `environment` has variables to add to those of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = [_arguments(command, tiny, Path(folder, "tiny"), "uniform")]
        runs.append(_arguments(command, model, Path(folder, "out"), weights))
        words = [sys.executable, __file__, "--runs", json.dumps(runs)]
        variables = {**os.environ, **(environment or {})}
        child = subprocess.run(words, capture_output=True, text=True, env=variables)
    if child.returncode != 0:
        raise SystemExit(f"error: {command}: {child.stderr}")
    before, peak = (Memory(*found) for found in json.loads(child.stdout.splitlines()[-1]))
    anonymous, resident = ((most - held) / table_bytes for most, held in zip(peak, before, strict=True))
    return Peak(resident, anonymous, peak.resident / 1e6)


def _arguments(command: str, model: Path, output: Path, weights: str | None) -> list[str]:
    """The words of a command line; `expand` takes the model that `compress` would make of it."""
    words = [*command.split(), str(model)]
    if weights is not None and words[0] != "expand":
        words += ["--weights", weights]
    return words if words[0] == "plan" else [*words, "-o", str(output)]


def _run_twice(runs: list[list[str]]) -> None:
    """Run the first command line, and then print what the process holds before the second one and at most during it."""
    from projclust.cli.app import run

    def run_well(words: list[str]) -> None:
        if run(words) != 0:
            raise SystemExit(f"error: {words}")

    run_well(runs[0])
    before = Memory.now()
    print(json.dumps([before, peak_memory(lambda: run_well(runs[1]))]))


def print_table(model: Path, temporary: Path, weights: str | None) -> None:
    """Print what each command takes with a model."""
    tiny = save_model(temporary / "tiny", *_TINY)
    n, d = AutoModel.from_pretrained(model).get_input_embeddings().weight.shape
    print(f"{n} x {d}, {4 * n * d / 1e6:.0f} MB in float32, torch {torch.__version__}\n")
    print("| command | peak, tables | of these anonymous | the whole process, MB |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    for command in COMMANDS:
        sources = model, tiny
        if command == "expand":
            sources = compressed(model, temporary / "model-out", weights), compressed(tiny, temporary / "tiny-out")
        peak = measured(command, *sources, 4 * n * d, weights)
        print(
            f"| `{command}` | {peak.resident:.2f} | {peak.anonymous:.2f} | {peak.megabytes:.0f} |",
            flush=True,
        )


def compressed(model: Path, output: Path, weights: str | None = "uniform") -> Path:
    """The folder of a model at half a bit a weight."""
    words = _arguments("compress --bits 0.5", model, output, weights)
    subprocess.run([sys.executable, "-m", "projclust", *words], check=True, capture_output=True)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="The folder of a dense model, in place of a synthetic one.")
    parser.add_argument("--runs", type=json.loads, help=argparse.SUPPRESS)
    add_size_options(parser)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    if arguments.runs is not None:
        _run_twice(arguments.runs)
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary, model = Path(folder), arguments.model
        if model is None:
            model = save_model(temporary / "model", arguments.rows or ROWS, arguments.columns or WIDTH)
        print_table(model, temporary, "uniform" if arguments.model is None else None)


if __name__ == "__main__":
    main()
