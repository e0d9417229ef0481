"""Fidelity of sentence encoders whose table is coded, against baselines at equal or more bytes; nothing is trained.

    python benchmarks/study_codes.py --glue-dir path/to/glue [--model FOLDER] [--recipes auto,pq] [--bits 2,1,0.75,0.5]

Prints for every recipe and size the stored bits a weight (everything counted), Spearman's rank correlation (x 100)
between the cosines of sentence pairs and the gold scores of STS-B, and the mean cosine between each sentence's vector
and the dense model's over 1500 sentences of six validation sets of GLUE. Vectors are means of the last hidden states
over the tokens, of unit length. Recipes are `auto` (codes auto), `auto-no-sensitivity`, `auto-scalar` (Lloyd-Max codes
in place of trellises), `auto-uniform` (all rows weigh the same), and the methods in `projclust.recipes.recipe`; those
of one size are measured once. The model is the packaged MiniLM unless another encoder is given. `--plot PNG` also draws
the cosines; with `--tables FILE...`, which hold what this printed earlier, it draws those and measures nothing.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_tables import add_glue_option
from datasets import disable_progress_bars, load_dataset
from matplotlib import pyplot
from minilm_forms import minilm_folder
from probe_stsb import encode
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from projclust.coding.fit import Coder, fit_coded
from projclust.errors import ProjclustError
from projclust.hf.sensitivity import model_sensitivity
from projclust.options import Codes
from projclust.recipes.recipe import Recipe
from projclust.report.plots import BLUE, GREY
from projclust.tables import CodedEmbedding
from projclust.weights.importance import row_weights
from projclust.weights.names import DEFAULT_EXPONENT
from projclust.weights.wordfreq import word_frequencies

SENTENCES = {
    "sst2": "sentence",
    "cola": "sentence",
    "mrpc": "sentence1",
    "qqp": "question1",
    "rte": "sentence1",
    "qnli": "question",
}
SENTENCES_A_TASK = 250

# Recipes with one size, and those that are measured at every size; "projective" has int8 coefficients.
FIXED = ("int8", "int4", "int3", "int2", "nf4")
BASELINES = (*FIXED, "svd-float16", "svd-int8", "svd-int4", "pq", "projective")


@dataclass(frozen=True)
class Score:
    """A recipe's figures."""

    recipe: str
    bits: float
    spearman: dict[str, float]
    cosine: float
    seconds: float


class Probe:
    """A sentence encoder, and what its dense table makes of some sentences."""

    def __init__(self, folder: Path, glue_dir: str, splits: list[str]) -> None:
        self.model: PreTrainedModel = AutoModel.from_pretrained(folder).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.table: Tensor = self.model.get_input_embeddings().weight.detach().clone()
        self.sentences = [
            text
            for task, column in SENTENCES.items()
            for text in list(load_dataset(glue_dir, task, split="validation")[column])[:SENTENCES_A_TASK]
        ]
        self.pairs = {split: load_dataset(glue_dir, "stsb", split=split) for split in splits}
        self.dense = encode(self.model, self.tokenizer, self.sentences)

    @torch.no_grad()
    def score(self, recipe: str, table: Tensor, size: int, seconds: float) -> Score:
        """The scores of the model with another table, of `size` stored bytes, in place of the dense one."""
        self.model.get_input_embeddings().weight.copy_(table)
        spearman = {}
        for split, data in self.pairs.items():
            first, second = list(data["sentence1"]), list(data["sentence2"])
            vectors = encode(self.model, self.tokenizer, first + second)
            cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(1)
            spearman[split] = 100 * float(spearmanr(cosines.tolist(), list(data["label"])).statistic)
        vectors = encode(self.model, self.tokenizer, self.sentences)
        self.model.get_input_embeddings().weight.copy_(self.table)
        return Score(
            recipe, 8 * size / self.table.numel(), spearman, float((vectors * self.dense).sum(1).mean()), seconds
        )


def study(probe: Probe, recipes: list[str], sizes: list[float], exponent: float) -> Iterator[Score]:
    """Scores of the dense model and of every recipe at every size that it can have."""
    n, d = probe.table.shape
    yield probe.score("dense", probe.table, 4 * n * d, 0.0)
    frequencies = word_frequencies(probe.tokenizer, n)
    weights = row_weights(frequencies, exponent)
    sensitivity: Tensor | None = None
    for recipe in recipes:
        for bits in [None] if recipe in FIXED else sizes:
            if recipe in ("auto", "auto-scalar") and sensitivity is None:
                sensitivity = model_sensitivity(probe.model, frequencies)
            started = time.perf_counter()
            try:
                if recipe.startswith("auto"):
                    assert bits is not None
                    coded = fit_coded(
                        probe.table,
                        int(bits * n * d / 8),
                        None if recipe == "auto-uniform" else weights,
                        sensitivity if recipe in ("auto", "auto-scalar") else None,
                        Coder.SCALAR if recipe == "auto-scalar" else Coder.TRELLIS,
                    )
                    embedding = CodedEmbedding(coded.shape)
                    embedding.set_stored(coded.stored)
                    table, size = embedding.dense_weight(), coded.shape.bytes
                else:
                    codes = Codes.INT8 if recipe == "projective" else None
                    found = Recipe(method=recipe, bits=bits, codes=codes).fit(probe.table, weights)
                    table, size = found.rows(torch.arange(n)), found.bytes
            except ProjclustError:  # no such size
                continue
            yield probe.score(recipe, table, size, time.perf_counter() - started)


def print_scores(scores: Iterator[Score], splits: list[str]) -> list[tuple[str, float, float]]:
    """Print the table; (recipe, bits, cosine) of its rows."""
    heads = " | ".join(f"STS-B {split}" for split in splits)
    print(f"| recipe | bits a weight | {heads} | cosine to dense | seconds |")
    print("| --- | ---: " + "| ---: " * (len(splits) + 2) + "|")
    points = []
    for score in scores:
        spearman = " | ".join(f"{value:.2f}" for value in score.spearman.values())
        print(
            f"| {score.recipe} | {score.bits:.3f} | {spearman} | {score.cosine:.4f} | {score.seconds:.0f} |", flush=True
        )
        points.append((score.recipe, score.bits, score.cosine))
    return points


def read_scores(tables: list[Path]) -> list[tuple[str, float, float]]:
    """(recipe, bits, cosine) of the rows of tables that were printed before."""
    points = []
    for table in tables:
        for line in table.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) >= 5 and cells[1].replace(".", "").isdigit():
                points.append((cells[0], float(cells[1]), float(cells[-2])))
    return list(dict.fromkeys(points))


def plot(points: list[tuple[str, float, float]], path: Path) -> None:
    """Cosines against stored bits, both logarithmic: ours in colour, the others in grey."""
    names = {
        "auto": "projclust --bits",
        "projective": "5 subspaces, int8",
        "svd-int8": "SVD, int8",
        "svd-int4": "SVD, int4",
    }
    names |= {"pq": "product quantization", "int4": "int4 / int3 / int2, groups of 32", "int8": "int8", "nf4": "NF4"}
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    series: dict[str, list[tuple[float, float]]] = {}
    for recipe, bits, cosine in points:
        if cosine < 1 and not recipe.startswith("auto-"):  # no more than four decimals are known
            series.setdefault("int4" if recipe in ("int3", "int2") else recipe, []).append((bits, 1 - cosine))
    for (recipe, line), marker in zip(series.items(), "os^Dv*PX<>", strict=False):
        colour, width = (BLUE, 2.2) if recipe == "auto" else (GREY, 1.0)
        label = names.get(recipe, recipe)
        axes.plot(*zip(*sorted(line), strict=True), marker=marker, color=colour, linewidth=width, label=label)
    axes.set(xscale="log", yscale="log", xlabel="stored bits for each weight of the embedding, everything counted")
    axes.set(
        ylabel="1 - cosine to the dense sentence vector", title="What is lost of sentence vectors; nothing trained"
    )
    ticks = [0.35, 0.5, 0.75, 1, 2, 4, 8]
    axes.set_xticks(ticks, [f"{tick:g}\n{32 / tick:.0f}x" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_glue_option(parser)
    parser.add_argument("--model", type=Path, default=None, help="The folder of another sentence encoder.")
    everything = ["auto", "auto-no-sensitivity", "auto-scalar", "auto-uniform", *BASELINES]
    parser.add_argument("--recipes", default=",".join(everything), help="The recipes to measure.")
    parser.add_argument("--bits", default="2,1,0.75,0.5,0.35", help="Stored bits for each weight.")
    parser.add_argument("--splits", default="validation", help="The splits of STS-B to score.")
    parser.add_argument("--exponent", type=float, default=DEFAULT_EXPONENT, help="The power of the frequencies.")
    parser.add_argument("--plot", type=Path, default=None, metavar="PNG", help="Draw the cosines to this file.")
    parser.add_argument(
        "--tables", type=Path, nargs="+", default=None, help="Draw what these files hold, and measure nothing."
    )
    arguments = parser.parse_args()
    if arguments.tables is not None:
        plot(read_scores(arguments.tables), arguments.plot or Path("codes.png"))
        return
    logging.disable_progress_bar()
    disable_progress_bars()
    splits = arguments.splits.split(",")
    probe = Probe(arguments.model or minilm_folder(), arguments.glue_dir, splits)
    sizes = [float(bits) for bits in arguments.bits.split(",")]
    points = print_scores(study(probe, arguments.recipes.split(","), sizes, arguments.exponent), splits)
    if arguments.plot is not None:
        plot(points, arguments.plot)


if __name__ == "__main__":
    main()
