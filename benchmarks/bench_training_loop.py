"""What the fine-tuning loop costs over a bare PyTorch loop on the same model and the same batches.

    python benchmarks/bench_training_loop.py [--rows 2048] [--rounds 3] [--device cpu]

Both do the same work: forward, backward, clipping, AdamW, the schedule. The bare loop has no Accelerate, no data loader
and no checks; its padded batches lie ready in memory. Rounds alternate, and the ratio of the medians is printed: what
is above 1 is the loop's overhead. The model is the packaged MiniLM, the rows are the demonstration's, repeated.
"""

import argparse
import copy
import statistics
import time

import torch
from machine import add_machine_options, machine_of
from minilm_forms import minilm_folder
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers.utils import logging

from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.load import load_tokenizer
from projclust.glue.batches import ShuffledBatches, data_loader, encode
from projclust.glue.data import Rows, load_task
from projclust.glue.settings import Settings
from projclust.glue.training import make_accelerator, train


def bare(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]], settings: Settings) -> float:
    """Seconds of a plain loop over batches that lie ready."""
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    steps = len(batches)
    schedule = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
    model.train()
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    loss.item()  # waits for the device
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="Rows of training data (default: 2048, with --quick 64).")
    parser.add_argument("--rounds", type=int, default=3, help="How often to measure both loops.")
    add_machine_options(parser)
    arguments = parser.parse_args()
    machine = machine_of(arguments)
    count = arguments.rows or (64 if machine.quick else 2048)
    logging.disable_progress_bar()

    data = load_task("demo", None)
    texts = [data.train.texts[0][row % len(data.train)] for row in range(count)]
    labels = [int(data.train.labels[row % len(data.train)]) for row in range(count)]
    tokenizer = load_tokenizer(minilm_folder())
    rows = encode(Rows((texts,), labels), tokenizer, 128)
    settings = Settings()
    accelerator = make_accelerator(settings, cpu=machine.device == "cpu")
    model = load_classifier(minilm_folder(), data.task.labels).model.to(accelerator.device)
    sampler = ShuffledBatches(rows.lengths(), settings.batch_size, seed=0)
    batches = [
        {name: tensor.to(accelerator.device) for name, tensor in batch.items() if name != "row"}
        for batch in data_loader(rows, sampler, tokenizer)
    ]
    ours, plain = [], []
    for turn in range(arguments.rounds + 1):  # the first one warms up
        first = train(copy.deepcopy(model), tokenizer, rows, 1, 0, settings, accelerator)
        second = bare(copy.deepcopy(model), batches, settings)
        if turn:
            ours.append(first)
            plain.append(second)
    ratio = statistics.median(ours) / statistics.median(plain)
    print(f"{len(batches)} steps of {settings.batch_size} rows on {accelerator.device}, median of {arguments.rounds}:")
    print(f"bare loop {statistics.median(plain):.2f} s, projclust {statistics.median(ours):.2f} s, ratio {ratio:.3f}")
