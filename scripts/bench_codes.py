"""Coding a table, and a model with a coded table: seconds, bytes, and ratios to the dense model in the same run.

    python scripts/bench_codes.py [MODEL_FOLDER] [--bits 0.5]
    python scripts/bench_codes.py --table FOLDER [--bits 0.5]

Always measures MiniLM (extra `demo`); with a folder, that model too. With `--table`, only the time and memory of coding
a table by itself, such as that of large_table.py; on Linux. Rounds alternate dense and coded. Other load on
the machine disturbs the ratio of the minimums less than that of the medians. Rows are weighed by English word
frequencies, so that the classes are those of `projclust compress --bits`.
"""

import argparse
import copy
import gc
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_lookup import DEVICE, forward, print_row, tokens, training_step
from bench_solver import read_table
from minilm_forms import minilm_folder
from process_memory import extra_memory
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from projclust import CodedEmbedding, CodedLMHead, unfreeze
from projclust.coding.fit import fit_coded
from projclust.hf.compress import compress_embedding
from projclust.hf.config import ProjClustConfig
from projclust.hf.metric import model_metric
from projclust.weights import row_weights, word_weights


def timed(what: str, started: float) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print(f"| {what} | {time.perf_counter() - started:.2f} |", flush=True)


def coded_copy(dense: PreTrainedModel, folder: Path, bits: float) -> PreTrainedModel:
    """The model with a coded table; prints what the parts of the coding take."""
    model = copy.deepcopy(dense)
    print("| making it | seconds |\n| --- | ---: |")
    started = time.perf_counter()
    weights = word_weights(AutoTokenizer.from_pretrained(folder), len(model.get_input_embeddings().weight))
    timed("row weights from word frequencies", started)
    started = time.perf_counter()
    model_metric(model.to(DEVICE))
    timed("metric from the model's gradients", started)
    started = time.perf_counter()
    compress_embedding(model, ProjClustConfig(codes="auto", bits=bits, metric="none"), weights, DEVICE)
    timed(f"fit and encode at {bits:g} bits", started)
    return model.to(DEVICE)


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that they are read from the disk again."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_seconds(folder: Path, from_disk: bool) -> float:
    gc.collect()  # of the model before
    if from_disk:
        forget(folder)
    started = time.perf_counter()
    AutoModel.from_pretrained(folder)
    return time.perf_counter() - started


def print_loading(dense: PreTrainedModel, coded: PreTrainedModel) -> None:
    # Beside the models in use: a temporary folder may lie in memory, where there is no disk to read from.
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        folders = [Path(temporary) / name for name in ("dense", "coded")]
        for model, folder in zip((dense, coded), folders, strict=True):
            model.save_pretrained(folder)
        for where, from_disk in (("the page cache", False), ("the disk", True)):
            times = [[load_seconds(folder, from_disk) for folder in folders] for _ in range(16)][1:]
            columns = [1e3 * np.array(column) for column in zip(*times, strict=True)]
            (middle, coded_middle), (least, coded_least) = map(np.median, columns), map(np.min, columns)
            print(
                f"| from_pretrained, from {where} | {middle:.1f} | {coded_middle:.1f} | {coded_middle / middle:.2f} "
                f"| {coded_least / least:.2f} |"
            )


def print_model(folder: Path, bits: float) -> None:
    dense = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    n, d = dense.get_input_embeddings().weight.shape
    print(f"\n## {type(dense).__name__}, {n} x {d}, {bits:g} bits a weight\n")
    coded = coded_copy(dense, folder, bits)
    dense = dense.to(DEVICE)
    old, new = dense.get_input_embeddings(), coded.get_input_embeddings()
    assert isinstance(new, CodedEmbedding)
    held = sum(part.numel() * part.element_size() for part in new.buffers())
    addresses = new.addresses()
    derived = sum(part.numel() * part.element_size() for part in (addresses.starts, addresses.classes))
    derived += sum(part.numel() * part.element_size() for part in addresses.windows)
    print(f"\nstored: {new.shape.bytes:,} bytes; in memory: {held:,}, and {derived:,} derived from them\n")
    print("| what | dense, ms | coded, ms | ratio of medians | of minimums |\n| --- | ---: | ---: | ---: | ---: |")
    for shape in ((1, 16), (32, 128)):
        ids, name = tokens(n, *shape), f"{shape[0]} x {shape[1]}"
        print_row(f"lookup, {name}", forward(old, ids), forward(new, ids))
        print_row(f"whole model, {name}", forward(dense, ids), forward(coded, ids))
    head, dense_head = CodedLMHead(new.shape, primary=new).to(DEVICE), nn.Linear(d, n, bias=False, device=DEVICE)
    for positions in (1, 128, 4096):
        hidden = torch.randn(positions, d, device=DEVICE)
        print_row(f"tied head, {positions}", forward(dense_head, hidden), forward(head, hidden))
    print_loading(dense, coded)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    coded_classifier = copy.deepcopy(classifier)
    coded_classifier.base_model.set_input_embeddings(new)
    unfreeze(coded_classifier)
    ids = tokens(n, 32, 128)
    print_row("training step, 32 x 128", training_step(classifier, ids), training_step(coded_classifier, ids))


def print_table(folder: Path, bits: float) -> None:
    table = read_table(folder)
    n, d = table.shape
    weight = row_weights(1 / torch.arange(1, n + 1, dtype=torch.float64))  # by rank, as Zipf's law has it
    started = time.perf_counter()
    extra = extra_memory(lambda: fit_coded(table.to(DEVICE), int(bits * table.numel() / 8), weight))
    seconds = time.perf_counter() - started
    print(
        f"{n:,} x {d}, {bits:g} bits a weight: {seconds:.1f} s, {extra / 1e6:.0f} MB beside the mapped table of "
        f"{table.nbytes / 1e6:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="another model's folder, such as MPNet's")
    parser.add_argument("--bits", type=float, default=0.5)
    parser.add_argument("--table", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    hardware = torch.cuda.get_device_name() if DEVICE == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{DEVICE} ({hardware}), {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    torch.manual_seed(0)
    if arguments.table is not None:
        print_table(arguments.table, arguments.bits)
        return
    for folder in [minilm_folder(), *([arguments.folder] if arguments.folder else [])]:
        print_model(folder, arguments.bits)


if __name__ == "__main__":
    main()
