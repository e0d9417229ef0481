"""Why a coded embedding costs a classifier points, and what scaling its rows up gives back.

    python benchmarks/study_gain.py MODEL --data glue [--task qnli] [--bits 0.5] [--gains 1,1.1,1.2] [-o FOLDER]

Codes of few bits leave rows shorter than they were, as every code of least squares does. A model adds a position's row
to each, and a classifier's margin between its two classes is shifted. For each seed the dense model is fine-tuned for
three epochs (once: it is kept in FOLDER), its embedding is coded, and its rows are multiplied by each gain. Prints the
accuracy, the share of rows given the second class, the accuracy with the threshold moved until that share is the dense
model's, the mean shift of the margin, and its correlation with the dense model's.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, logging

from projclust import compress_model
from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.folder import new_folder
from projclust.glue.batches import encode
from projclust.glue.data import load_task
from projclust.glue.settings import Settings
from projclust.glue.tasks import TASKS
from projclust.glue.training import logits, make_accelerator, train

EPOCHS = 3


def margins(outputs: Tensor) -> Tensor:
    """(rows,) how much more the second class is said to be right than the first."""
    return outputs[:, 1] - outputs[:, 0]


def line(name: str, margin: Tensor, dense: Tensor, labels: Tensor) -> str:
    """A row of the table for a model's margins beside those of the dense one."""
    moved = margin.argsort(descending=True).argsort() < (dense > 0).sum()  # as many rows as the dense model says
    found = [100 * ((margin > 0) == labels.bool()).float().mean(), 100 * (margin > 0).float().mean()]
    found += [100 * (moved == labels.bool()).float().mean()]
    correlation = torch.corrcoef(torch.stack([margin, dense]))[0, 1]
    points = " | ".join(f"{value:.1f}" for value in found)
    return f"| {name} | {points} | {(margin - dense).mean():+.3f} | {correlation:.4f} |"


def scaled(model: PreTrainedModel, rows: Tensor, gain: float) -> PreTrainedModel:
    """The dense model with other rows in its embedding."""
    model.get_input_embeddings().weight.data.copy_(rows * gain)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="A dense model's folder.")
    parser.add_argument("--data", required=True, help="A folder of nyu-mll/glue's layout.")
    of_two = [name for name, task in TASKS.items() if len(task.labels) == 2]
    parser.add_argument("--task", default="qnli", choices=of_two, help="A task of two classes (qnli).")
    parser.add_argument("--rows", type=int, default=1500, help="Rows of a split, at most (1500).")
    parser.add_argument("--bits", type=float, default=0.5, help="Bits of a weight (0.5).")
    parser.add_argument("--gains", default="1,1.1,1.2", help="What rows are multiplied by (1,1.1,1.2).")
    parser.add_argument("--seeds", default="0,1,2", help="Seeds of the fine-tuning (0,1,2).")
    parser.add_argument("-o", type=Path, default=Path("gain"), help="Where fine-tuned models lie (gain).")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    data = load_task(arguments.task, arguments.data, arguments.rows)
    settings = Settings(learning_rate=5e-5)
    tokenizer, accelerator = AutoTokenizer.from_pretrained(arguments.model), make_accelerator(settings, True)
    rows, validation = (
        encode(part, tokenizer, settings.max_length) for part in (data.train, next(iter(data.validation.values())))
    )
    print("| seed, embedding | accuracy | % second class | accuracy, threshold moved | shift | correlation |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for seed in map(int, arguments.seeds.split(",")):
        folder = arguments.o / f"{arguments.task}-{seed}"
        if not folder.exists():
            torch.manual_seed(seed)
            fresh = load_classifier(arguments.model, data.task.labels).model
            train(fresh, tokenizer, rows, EPOCHS, seed, settings, accelerator)
            with new_folder(folder, overwrite=False) as unfinished:
                fresh.save_pretrained(unfinished)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        dense = margins(logits(model, tokenizer, validation, accelerator))
        print(line(f"{seed}, dense", dense, dense, validation.labels))
        coded = AutoModelForSequenceClassification.from_pretrained(folder)
        compress_model(coded, tokenizer=tokenizer, bits=arguments.bits)
        with torch.no_grad():
            decoded = coded.get_input_embeddings()(torch.arange(model.config.vocab_size))
        for gain in map(float, arguments.gains.split(",")):
            margin = margins(logits(scaled(model, decoded, gain), tokenizer, validation, accelerator))
            print(line(f"{seed}, {arguments.bits:g} bits x {gain:g}", margin, dense, validation.labels), flush=True)


if __name__ == "__main__":
    main()
