"""Coding a table, and a model with a coded table: seconds, bytes, and ratios to the dense model in the same run.

    python benchmarks/bench_codes.py [MODEL_FOLDER] [--bits 0.5] [--synthetic] [--device cpu]
    python benchmarks/bench_codes.py --table [FOLDER] [--bits 0.5]

Always measures MiniLM (extra `demo`), or with --synthetic a random model of its size; with a folder, that model too.
With --table, only the time and memory of coding a table by itself, such as that of large_table.py; on Linux. Without a
folder that table is a synthetic one, of MiniLM's size unless --rows and --columns say another. Rounds alternate dense
and coded. Other load on the machine disturbs the ratio of the minimums less than that of the medians. Rows are weighed
by English word frequencies, so that the classes are those of `projclust compress --bits`; those of synthetic tables by
Zipf's law. The floor of coding is the time of its products at the machine's rate: 2nd(d + r) operations for the
moments and the coordinates, and 512 for every coordinate that has a code, whose search tries 256 states.
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
from bench_lookup import forward, training_step
from bench_models import ROWS, WIDTH, add_model_options, batches, load_dense, positions, sources_of, tokens
from bench_tables import add_size_options, read_table, synthetic_table, zipf_weights
from machine import Machine, add_machine_options, beside_target, machine_of, print_head
from process_memory import extra_memory
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from projclust import compress_model, unfreeze
from projclust.coding.fit import CodedMatrix, fit_coded
from projclust.hf.sensitivity import model_sensitivity
from projclust.shapes import CodedShape
from projclust.weights.importance import row_weights
from projclust.weights.wordfreq import word_weights


def print_timed(what: str, started: float, machine: Machine) -> None:
    machine.synchronize()
    print(f"| {what} | {time.perf_counter() - started:.2f} |", flush=True)


def weights_of(source: Path | None, n: int) -> Tensor:
    """(n,) row weights from word frequencies, or from Zipf's law where there is no tokenizer."""
    if source is None:
        return row_weights(zipf_weights(n))
    return word_weights(AutoTokenizer.from_pretrained(source), n)


def coded_copy(
    dense: PreTrainedModel, source: Path | None, bits: float, machine: Machine
) -> tuple[PreTrainedModel, Tensor]:
    """The model with a coded table, and the row weights; prints what the parts of the coding take."""
    model = copy.deepcopy(dense)
    print("| making it | seconds |\n| --- | ---: |")
    started = time.perf_counter()
    weights = weights_of(source, len(model.get_input_embeddings().weight))
    print_timed("row weights", started, machine)
    started = time.perf_counter()
    model_sensitivity(model.to(machine.device))
    print_timed("sensitivity from the model's gradients", started, machine)
    started = time.perf_counter()
    compress_model(model, bits=bits, sensitivity="none", sample_weight=weights, device=machine.device)
    print_timed(f"fit and encode at {bits:g} bits", started, machine)
    return model.to(machine.device), weights


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


def print_loading(dense: PreTrainedModel, coded: PreTrainedModel, machine: Machine) -> None:
    # Beside the models in use: a temporary folder may lie in memory, where there is no disk to read from.
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        folders = [Path(temporary) / name for name in ("dense", "coded")]
        for model, folder in zip((dense, coded), folders, strict=True):
            model.save_pretrained(folder)
        for where, from_disk in (("the page cache", False), ("the disk", True)):
            times = [[load_seconds(folder, from_disk) for folder in folders] for _ in range(4 if machine.quick else 16)]
            columns = [1e3 * np.array(column) for column in zip(*times[1:], strict=True)]
            (middle, coded_middle), (least, coded_least) = map(np.median, columns), map(np.min, columns)
            print(
                f"| from_pretrained, from {where} | {middle:.1f} | {coded_middle:.1f} | {coded_middle / middle:.2f} "
                f"| {coded_least / least:.2f} | - |"
            )


def lookup_floor(shape: CodedShape, ids: Tensor, machine: Machine) -> float:
    """Seconds that a lookup of these tokens takes at least: products for each different one."""
    different = len(ids.unique())
    read = shape.bytes * different / shape.n
    return machine.rates.floor(2 * different * shape.rank * shape.d, read + 4 * ids.numel() * shape.d)


def head_floor(shape: CodedShape, count: int, machine: Machine) -> float:
    """Seconds that the logits of so many positions take at least, by the cheaper order of the two products."""
    n, d, r = shape.n, shape.d, shape.rank
    operations = min(2 * n * d * (r + count), 2 * count * r * (shape.decoders * d + n))
    return machine.rates.floor(operations, shape.bytes + 4 * count * (n + d))


def print_model(source: Path | None, bits: float, machine: Machine) -> None:
    dense = load_dense(source, AutoModel, machine)
    n, d = dense.get_input_embeddings().weight.shape
    print(f"\n## {type(dense).__name__}, {n} x {d}, {bits:g} bits a weight\n")
    coded, weights = coded_copy(dense, source, bits, machine)
    dense = dense.to(machine.device)
    old, new = dense.get_input_embeddings(), coded.get_input_embeddings()
    held = sum(part.numel() * part.element_size() for part in new.buffers())
    addresses = new.addresses()
    derived = sum(part.numel() * part.element_size() for part in (addresses.starts, addresses.classes))
    derived += sum(part.numel() * part.element_size() for part in addresses.windows)
    if (reading := new.reading()) is not None:
        derived += sum(part.nbytes for part in (reading.places, reading.factors, *getattr(reading, "basis", ())))
    print(f"\nstored: {new.shape.bytes:,} bytes; in memory: {held:,}, and {derived:,} derived from them\n")
    print_head("coded")
    for size in batches(machine):
        ids, name = tokens(n, size, machine), f"{size[0]} x {size[1]}"
        floor = lookup_floor(new.shape, ids, machine)
        machine.print_row(f"lookup, {name}", forward(old, ids), forward(new, ids), floor)
        machine.print_row(f"whole model, {name}", forward(dense, ids), forward(coded, ids))
    with_head = load_dense(source, AutoModelForMaskedLM, machine).to(machine.device)
    dense_head = copy.deepcopy(with_head.get_output_embeddings())
    compress_model(with_head, bits=bits, sensitivity="none", sample_weight=weights, device=machine.device)
    head = with_head.to(machine.device).get_output_embeddings()
    for count in positions(machine):
        hidden = torch.randn(count, d, device=machine.device)
        floor = head_floor(head.shape, count, machine)
        machine.print_row(f"tied head, {count}", forward(dense_head, hidden), forward(head, hidden), floor)
    del with_head, dense_head, head
    print_loading(dense, coded, machine)
    classifier = load_dense(source, AutoModelForSequenceClassification, machine).to(machine.device)
    coded_classifier = copy.deepcopy(classifier)
    coded_classifier.base_model.set_input_embeddings(new)
    unfreeze(coded_classifier)
    size = batches(machine)[-1]
    ids = tokens(n, size, machine)
    machine.print_row(
        f"training step, {size[0]} x {size[1]}", training_step(classifier, ids), training_step(coded_classifier, ids)
    )


def coding_floor(coded: CodedMatrix, rate: float) -> float:
    """Seconds that the products of coding take at `rate` operations a second."""
    n, d, r = coded.shape.n, coded.shape.d, coded.shape.rank
    rows = torch.bincount(coded.classes.cpu(), minlength=len(coded.ranks)).tolist()
    with_code = sum(count * rank for count, rank in zip(rows, coded.ranks, strict=True))
    return (2 * n * d * (d + r) + 512 * with_code) / rate


def print_table(table: Tensor, bits: float, machine: Machine, target: float | None) -> None:
    n, d = table.shape
    weight = row_weights(zipf_weights(n))
    rate = machine.matrix_rate(d)
    found: list[CodedMatrix] = []

    def code() -> None:
        found[:] = [fit_coded(table.to(machine.device), int(bits * table.numel() / 8), weight)]

    print(f"{n:,} x {d}, {bits:g} bits a weight, {machine.name}\n")
    print("| what | measured |\n| --- | --- |")
    print(f"| matrix rate | {rate / 1e9:.0f} GFLOP/s |", flush=True)
    small = synthetic_table(2048, 32)
    fit_coded(small.to(machine.device), small.numel() // 8)  # the libraries' own buffers
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for again in ("", ", again"):
        started = time.perf_counter()
        extra = extra_memory(code)
        machine.synchronize()
        seconds = time.perf_counter() - started
        over = seconds / coding_floor(found[0], rate)
        print(
            f"| fit and encode{again} | {seconds:.2f} s = {over:.1f} x the floor of its products"
            f"{beside_target(seconds, target)} |",
            flush=True,
        )
    if machine.device == "cuda":
        used = torch.cuda.max_memory_allocated()
        print(f"| peak GPU memory, the table included | {used / 1e6:.0f} MB = {used / table.nbytes:.2f} tables |")
    else:
        print(f"| peak memory beside the table of {table.nbytes / 1e6:.0f} MB | {extra / 1e6:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=0.5, help="Stored bits for each weight (default: 0.5).")
    parser.add_argument(
        "--table", type=Path, nargs="?", const=Path(), metavar="FOLDER", help="Only code a table, without a model."
    )
    parser.add_argument(
        "--target", type=float, metavar="SECONDS", help="With --table, print whether it took no longer."
    )
    add_model_options(parser)
    add_size_options(parser)
    add_machine_options(parser)
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a head that no checkpoint has
    if arguments.table == Path():
        rows, columns = (3000, 64) if machine.quick else (ROWS, WIDTH)
        table = synthetic_table(arguments.rows or rows, arguments.columns or columns, device=machine.device)
        print_table(table, arguments.bits, machine, arguments.target)
    elif arguments.table is not None:
        print_table(read_table(arguments.table), arguments.bits, machine, arguments.target)
    else:
        print(f"{machine.name}, float32")
        for source in sources_of(arguments):
            print_model(source, arguments.bits, machine)


if __name__ == "__main__":
    main()
