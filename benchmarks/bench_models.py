"""Models to measure on: a checkpoint, or a random one with a synthetic table where there are no weights."""

import argparse
from pathlib import Path
from typing import Any

import torch
from bench_tables import synthetic_table
from machine import Machine
from minilm_forms import minilm_folder
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

# MiniLM's.
ROWS, WIDTH, LAYERS = 30522, 384, 6


def load_dense(source: Path | None, kind: Any, machine: Machine) -> PreTrainedModel:
    """A dense float32 model on the CPU.

    Args:
        source: folder of a checkpoint; None for a random model of MiniLM's size, or of a tiny one on a quick machine.
        kind: one of transformers' Auto classes.
    """
    if source is not None:
        model: PreTrainedModel = kind.from_pretrained(source, dtype=torch.float32).eval()
        return model
    rows, width, layers = (2000, 64, 1) if machine.quick else (ROWS, WIDTH, LAYERS)
    config = BertConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    torch.manual_seed(0)
    model = kind.from_config(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(synthetic_table(rows, width, device=machine.device))
    return model


def batches(machine: Machine) -> tuple[tuple[int, int], tuple[int, int]]:
    """A small and a large batch of tokens: sequences, and their length."""
    return ((1, 16), (4, 32)) if machine.quick else ((1, 16), (32, 128))


def positions(machine: Machine) -> tuple[int, ...]:
    """Positions for which an output layer makes logits."""
    return (1, 32) if machine.quick else (1, 128, 4096)


def tokens(vocabulary: int, shape: tuple[int, int], machine: Machine) -> Tensor:
    """Ids as frequent as in text (Zipf), of words in no order."""
    frequency = 1 / torch.arange(1, vocabulary + 1)
    drawn = torch.multinomial(frequency, torch.Size(shape).numel(), replacement=True)
    return torch.randperm(vocabulary)[drawn].view(shape).to(machine.device)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Let the command line choose the models."""
    parser.add_argument("folder", type=Path, nargs="?", help="The folder of another model, such as MPNet.")
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="Measure a random model of MiniLM's size with a synthetic table in place of MiniLM; it needs no weights.",
    )


def sources_of(arguments: argparse.Namespace) -> list[Path | None]:
    """What the command line chose, as `load_dense` takes it."""
    first = None if arguments.synthetic else minilm_folder()
    return [first, *([arguments.folder] if arguments.folder else [])]
