"""Time and memory of the compressed lookup and tied output head, as ratios to the dense layers in the same run.

    python scripts/bench_lookup.py [MODEL_FOLDER]

Always measures MiniLM (extra `demo`); with a folder, that model too. Rounds alternate dense and ours. Other load on the
machine disturbs the ratio of the minimums less than that of the medians. The table is compressed to k=5 at 40% off by a
random partition: the time depends on the shapes and not on how well the factors fit. If torchao or bitsandbytes is
installed, a lookup in their quantized embeddings is measured as well.
"""

import argparse
import copy
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from minilm_forms import minilm_folder
from process_memory import extra_memory
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from projclust import ProjectiveEmbedding, ProjectiveLMHead, compress_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """A dense model and its compressed copy."""

    dense: PreTrainedModel
    compressed: PreTrainedModel

    @property
    def vocabulary(self) -> int:
        return len(self.dense.get_input_embeddings().weight)

    def embeddings(self) -> tuple[nn.Embedding, ProjectiveEmbedding]:
        return self.dense.get_input_embeddings(), self.compressed.get_input_embeddings()


def load_pair(folder: Path, kind: type) -> Pair:
    dense = kind.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[attr-defined]
    compressed = copy.deepcopy(dense)
    compress_model(compressed, k=5, ratio=0.4, method="random")
    return Pair(dense.to(DEVICE), compressed.to(DEVICE))


def tied_head(embedding: ProjectiveEmbedding) -> tuple[nn.Linear, ProjectiveLMHead]:
    """An output layer with a bias, dense and factorised, on the same table."""
    n, d, k, j = embedding.num_embeddings, embedding.embedding_dim, embedding.n_clusters, embedding.rank
    head = ProjectiveLMHead(d, n, k, j, bias=True, device=DEVICE, primary=embedding)
    head.weight, head.bases = embedding.weight, embedding.bases
    dense = nn.Linear(d, n, device=DEVICE)
    dense.weight = nn.Parameter(embedding.dense_weight())
    head.bias = dense.bias
    return dense, head


def seconds(works: dict[str, Work]) -> dict[str, list[float]]:
    """Times of each work, in rounds that alternate: at least 9, more for 3 seconds; one before them is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    started, rounds = time.perf_counter(), 0
    while rounds < 10 or (time.perf_counter() - started < 3 and rounds < 200):
        for name, work in works.items():
            _synchronize()
            begun = time.perf_counter()
            work()
            _synchronize()
            times[name].append(time.perf_counter() - begun)
        rounds += 1
    return {name: taken[1:] for name, taken in times.items()}


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def print_row(what: str, dense: Work, ours: Work) -> None:
    times = seconds({"dense": dense, "ours": ours})
    (dense_median, ours_median), (dense_least, ours_least) = (
        [choose(times[name]) for name in ("dense", "ours")] for choose in (_median, min)
    )
    figures = f"{1e3 * dense_median:.2f} | {1e3 * ours_median:.2f}"
    print(f"| {what} | {figures} | {ours_median / dense_median:.2f} | {ours_least / dense_least:.2f} |", flush=True)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def tokens(vocabulary: int, *shape: int) -> Tensor:
    """Ids as frequent as in text (Zipf), of words in no order."""
    frequency = 1 / torch.arange(1, vocabulary + 1)
    drawn = torch.multinomial(frequency, torch.Size(shape).numel(), replacement=True)
    return torch.randperm(vocabulary)[drawn].view(shape).to(DEVICE)


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
    labels = torch.zeros(len(ids), dtype=torch.long, device=DEVICE)

    def work() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits, labels).backward()
        optimizer.step()

    return work


def print_times(folder: Path) -> None:
    pair = load_pair(folder, AutoModel)
    dense_embedding, embedding = pair.embeddings()
    n, d = dense_embedding.weight.shape
    print(f"\n## {type(pair.dense).__name__}, {n} x {d}, k={embedding.n_clusters}, j={embedding.rank}\n")
    print("| what | dense, ms | ours, ms | ratio of medians | of minimums |\n| --- | --- | --- | --- | --- |")
    for shape in ((1, 16), (32, 128)):
        ids = tokens(n, *shape)
        out = torch.randn(*shape, d, device=DEVICE)
        name = f"{shape[0]} x {shape[1]}"
        print_row(f"lookup, {name}", forward(dense_embedding, ids), forward(embedding, ids))
        print_row(
            f"lookup forward + backward, {name}",
            forward_backward(dense_embedding, ids, out),
            forward_backward(embedding, ids, out),
        )
        print_row(f"whole model, {name}", forward(pair.dense, ids), forward(pair.compressed, ids))
    dense_head, head = tied_head(embedding)
    for positions in (1, 128, 4096):
        hidden = torch.randn(positions, d, device=DEVICE, requires_grad=True)
        out = torch.randn(positions, n, device=DEVICE)
        print_row(f"tied head, {positions}", forward(dense_head, hidden), forward(head, hidden))
        print_row(
            f"tied head forward + backward, {positions}",
            forward_backward(dense_head, hidden, out),
            forward_backward(head, hidden, out),
        )
    del pair, dense_head, head
    classifiers = load_pair(folder, AutoModelForSequenceClassification)
    ids = tokens(n, 32, 128)
    print_row(
        "training step with AdamW, 32 x 128",
        training_step(classifiers.dense, ids),
        training_step(classifiers.compressed, ids),
    )


def peak_memory(work: Work) -> int:
    """Bytes in use at the peak of `work` above those in use before it."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    return extra_memory(work, interval=0.0005)


def print_memory(folder: Path) -> None:
    """In a process of its own, which holds no freed memory, and whose allocator returns at once what is freed."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    subprocess.run([sys.executable, __file__, str(folder), "--memory"], check=True, env=environment)


def print_memory_here(folder: Path) -> None:
    pair = load_pair(folder, AutoModel)
    dense_embedding, embedding = pair.embeddings()
    dense_head, head = tied_head(embedding)
    n, d = dense_embedding.weight.shape
    ids, hidden = tokens(n, 32, 128), torch.randn(1024, d, device=DEVICE, requires_grad=True)
    out, logits = torch.randn(32, 128, d, device=DEVICE), torch.randn(1024, n, device=DEVICE)
    print("\n| peak extra memory | dense, MB | ours, MB |\n| --- | --- | --- |")
    for what, dense, ours in (
        ("lookup, 32 x 128", forward(dense_embedding, ids), forward(embedding, ids)),
        (
            "lookup forward + backward, 32 x 128",
            forward_backward(dense_embedding, ids, out),
            forward_backward(embedding, ids, out),
        ),
        ("tied head, 1024", forward(dense_head, hidden), forward(head, hidden)),
        (
            "tied head forward + backward, 1024",
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
                peaks.append(peak_memory(work))
            figures.append(f"{max(peaks) / 1e6:.0f}")
        print(f"| {what} | {' | '.join(figures)} |", flush=True)


def print_other_libraries(folder: Path) -> None:
    dense, ours = load_pair(folder, AutoModel).embeddings()
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
            works[f"bitsandbytes {name}"] = quantized_table.to(DEVICE)
    else:
        print("\nbitsandbytes is not installed: skipped")
    ids = [tokens(dense.num_embeddings, *shape) for shape in ((1, 16), (32, 128))]
    print("\n| lookup, ms (median) | 1 x 16 | 32 x 128 |\n| --- | --- | --- |")
    medians: dict[str, list[str]] = {name: [] for name in works}
    for batch in ids:
        for name, times in seconds({name: forward(module, batch) for name, module in works.items()}).items():
            medians[name].append(f"{1e3 * _median(times):.3f}")
    for name, figures in medians.items():
        print(f"| {name} | {' | '.join(figures)} |")


def main(folders: list[Path]) -> None:
    """Print all tables of each model."""
    hardware = torch.cuda.get_device_name() if DEVICE == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{DEVICE} ({hardware}), {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    torch.manual_seed(0)
    for folder in folders:
        print_times(folder)
        print_memory(folder)
        print_other_libraries(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="another model's folder, such as MPNet's")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_memory_here(arguments.folder)
    else:
        main([minilm_folder(), *([arguments.folder] if arguments.folder else [])])
