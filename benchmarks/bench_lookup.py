"""Time and memory of the compressed lookup and tied output head, as ratios to the dense layers in the same run.

    python benchmarks/bench_lookup.py [MODEL_FOLDER] [--synthetic] [--device cpu]

Always measures MiniLM (extra `demo`), or with --synthetic a random model of its size; with a folder, that model too.
Rounds alternate dense and ours. Other load on the machine disturbs the ratio of the minimums less than that of the
medians. The table is compressed to k=5 at 40% off by a random partition: the time depends on the shapes and not on how
well the factors fit. The floor of a lookup or head is the longest of the time of its products at the machine's rate,
the time of a copy of what it has to read and write, and the time of one call. If torchao or bitsandbytes is installed,
a lookup in their quantized embeddings is measured as well.
"""

import argparse
import copy
import importlib.util
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_models import add_model_options, batches, load_dense, positions, sources_of, tokens
from machine import Machine, Work, add_machine_options, machine_of, print_head
from process_memory import extra_memory
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from projclust import compress_model
from projclust.shapes import FactoredShape

K, RATIO = 5, 0.4


@dataclass(frozen=True)
class Pair:
    """A dense model and its compressed copy, and the shape of the compressed table."""

    dense: PreTrainedModel
    compressed: PreTrainedModel
    shape: FactoredShape

    def embeddings(self) -> tuple[nn.Module, nn.Module]:
        return self.dense.get_input_embeddings(), self.compressed.get_input_embeddings()

    def heads(self) -> tuple[nn.Module, nn.Module]:
        return self.dense.get_output_embeddings(), self.compressed.get_output_embeddings()

    def lookup_floor(self, ids: Tensor, machine: Machine) -> float:
        """Seconds that a lookup of these tokens takes at least: products for each different one."""
        d, j, different = self.shape.d, self.shape.j, len(ids.unique())
        return machine.rates.floor(2 * different * j * d, 4 * (different * j + self.shape.k * j * d + ids.numel() * d))

    def head_floor(self, count: int, machine: Machine) -> float:
        """Seconds that the logits of so many positions take at least."""
        n, d, j, k = self.shape.n, self.shape.d, self.shape.j, self.shape.k
        operations = 2 * count * (k * j * d + n * j)
        return machine.rates.floor(operations, 4 * (self.shape.parameters + count * (n + d)))


def load_pair(source: Path | None, kind: Any, machine: Machine) -> Pair:
    dense = load_dense(source, kind, machine)
    n, d = dense.get_input_embeddings().weight.shape
    rank = FactoredShape(n, d, K, 1).largest_rank(lambda shape: shape.compression_rate >= RATIO)
    assert rank is not None
    compressed = copy.deepcopy(dense)
    compress_model(compressed, k=K, j=rank, method="random")
    return Pair(dense.to(machine.device), compressed.to(machine.device), FactoredShape(n, d, K, rank))


def forward(module: nn.Module, inputs: Tensor) -> Work:
    def work() -> None:
        with torch.no_grad():
            module(inputs)

    return work


def forward_backward(module: nn.Module, inputs: Tensor, out_gradient: Tensor) -> Work:
    def work() -> None:
        module.zero_grad()
        module(inputs).backward(out_gradient)

    return work


def training_step(model: PreTrainedModel, ids: Tensor) -> Work:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    labels = torch.zeros(len(ids), dtype=torch.long, device=ids.device)

    def work() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits, labels).backward()
        optimizer.step()

    return work


def print_times(source: Path | None, machine: Machine) -> None:
    pair = load_pair(source, AutoModel, machine)
    dense_embedding, embedding = pair.embeddings()
    n, d = pair.shape.n, pair.shape.d
    print(f"\n## {type(pair.dense).__name__}, {n} x {d}, k={pair.shape.k}, j={pair.shape.j}\n")
    print_head("ours")
    for shape in batches(machine):
        ids = tokens(n, shape, machine)
        out = torch.randn(*shape, d, device=machine.device)
        name = f"{shape[0]} x {shape[1]}"
        floor = pair.lookup_floor(ids, machine)
        machine.print_row(f"lookup, {name}", forward(dense_embedding, ids), forward(embedding, ids), floor)
        machine.print_row(
            f"lookup forward + backward, {name}",
            forward_backward(dense_embedding, ids, out),
            forward_backward(embedding, ids, out),
        )
        machine.print_row(f"whole model, {name}", forward(pair.dense, ids), forward(pair.compressed, ids))
    pair = load_pair(source, AutoModelForMaskedLM, machine)
    dense_head, head = pair.heads()
    for count in positions(machine):
        hidden = torch.randn(count, d, device=machine.device, requires_grad=True)
        out = torch.randn(count, n, device=machine.device)
        floor = pair.head_floor(count, machine)
        machine.print_row(f"tied head, {count}", forward(dense_head, hidden), forward(head, hidden), floor)
        machine.print_row(
            f"tied head forward + backward, {count}",
            forward_backward(dense_head, hidden, out),
            forward_backward(head, hidden, out),
        )
    del pair, dense_head, head
    classifiers = load_pair(source, AutoModelForSequenceClassification, machine)
    shape = batches(machine)[-1]
    ids = tokens(n, shape, machine)
    machine.print_row(
        f"training step with AdamW, {shape[0]} x {shape[1]}",
        training_step(classifiers.dense, ids),
        training_step(classifiers.compressed, ids),
    )


def peak_memory(work: Work, machine: Machine) -> int:
    """Bytes in use at the peak of `work` above those in use before it."""
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        machine.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return extra_memory(work, interval=0.0005)


def print_memory(source: Path | None, machine: Machine) -> None:
    """Measure memory in a new process: it holds no freed memory, and its allocator returns at once what is freed."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    options = ["--device", machine.device, *(["--quick"] if machine.quick else [])]
    what = "--synthetic" if source is None else str(source)
    subprocess.run([sys.executable, __file__, what, "--memory", *options], check=True, env=environment)


def print_memory_here(source: Path | None, machine: Machine) -> None:
    pair = load_pair(source, AutoModelForMaskedLM, machine)
    (dense_embedding, embedding), (dense_head, head) = pair.embeddings(), pair.heads()
    n, d = pair.shape.n, pair.shape.d
    shape, count = batches(machine)[-1], 32 if machine.quick else 1024
    ids, hidden = tokens(n, shape, machine), torch.randn(count, d, device=machine.device, requires_grad=True)
    out, logits = torch.randn(*shape, d, device=machine.device), torch.randn(count, n, device=machine.device)
    name = f"{shape[0]} x {shape[1]}"
    print("\n| peak extra memory | dense, MB | ours, MB |\n| --- | ---: | ---: |")
    for what, dense, ours in (
        (f"lookup, {name}", forward(dense_embedding, ids), forward(embedding, ids)),
        (
            f"lookup forward + backward, {name}",
            forward_backward(dense_embedding, ids, out),
            forward_backward(embedding, ids, out),
        ),
        (f"tied head, {count}", forward(dense_head, hidden), forward(head, hidden)),
        (
            f"tied head forward + backward, {count}",
            forward_backward(dense_head, hidden, logits),
            forward_backward(head, hidden, logits),
        ),
    ):
        figures = []
        for work in (dense, ours):
            work()  # the libraries' own buffers
            peaks = []
            for _ in range(3):  # the watcher may miss a short peak
                for module in (dense_embedding, embedding, dense_head, head):
                    module.zero_grad()
                hidden.grad = None
                peaks.append(peak_memory(work, machine))
            figures.append(f"{max(peaks) / 1e6:.0f}")
        print(f"| {what} | {' | '.join(figures)} |", flush=True)


def print_other_libraries(source: Path | None, machine: Machine) -> None:
    dense, ours = load_pair(source, AutoModel, machine).embeddings()
    assert isinstance(dense, nn.Embedding)
    works: dict[str, nn.Module] = {"dense": dense, "projclust": ours}
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found,unused-ignore]

        quantized = nn.Sequential(copy.deepcopy(dense))
        quantize_(quantized, Int8WeightOnlyConfig(), filter_fn=lambda module, _: isinstance(module, nn.Embedding))
        works["torchao int8"] = quantized
    else:
        print("\ntorchao is not installed: skipped")
    if importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes as bnb  # type: ignore[import-not-found,unused-ignore]

        for name, kind in (("8 bits", bnb.nn.Embedding8bit), ("4 bits", bnb.nn.EmbeddingNF4)):
            quantized_table = kind(dense.num_embeddings, dense.embedding_dim, dtype=torch.float32)
            quantized_table.load_state_dict(dense.state_dict())
            works[f"bitsandbytes {name}"] = quantized_table.to(machine.device)
    else:
        print("\nbitsandbytes is not installed: skipped")
    ids = [tokens(dense.num_embeddings, shape, machine) for shape in batches(machine)]
    names = " | ".join(f"{batch.shape[0]} x {batch.shape[1]}" for batch in ids)
    print(f"\n| lookup, ms (median) | {names} |\n| --- | ---: | ---: |")
    medians: dict[str, list[str]] = {name: [] for name in works}
    for batch in ids:
        for name, times in machine.alternating({name: forward(own, batch) for name, own in works.items()}).items():
            medians[name].append(f"{1e3 * statistics.median(times):.3f}")
    for name, figures in medians.items():
        print(f"| {name} | {' | '.join(figures)} |")


def main(sources: list[Path | None], machine: Machine) -> None:
    """Print all tables of each model."""
    rates = machine.rates
    print(
        f"{machine.name}, float32; products {rates.products / 1e9:.0f} GFLOP/s, copies {rates.copies / 1e9:.1f} GB/s, "
        f"a call {1e6 * rates.call:.0f} us"
    )
    for source in sources:
        print_times(source, machine)
        print_memory(source, machine)
        print_other_libraries(source, machine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    add_model_options(parser)
    add_machine_options(parser)
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a head that no checkpoint has
    if arguments.memory:
        print_memory_here(arguments.folder, machine)
    else:
        main(sources_of(arguments), machine)
