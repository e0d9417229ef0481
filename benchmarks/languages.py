"""What a multilingual sentence encoder loses in each language; nothing is trained.

    python benchmarks/languages.py --model FOLDER --data FOLDER [--bits 0.5,1] [--json FILE] [--plot PNG]

`--data` holds `stsb/stsb-LANG-dev.csv` (sentence, sentence, score; of stsb-multi-mt), and translated pairs, line by
line, as `tatoeba/tatoeba.LANG-eng.LANG` and `.eng` (of LASER's Tatoeba test set v1). Without it nothing is measured.
Prints for the dense model and every recipe the size of the table, the mean over languages of Spearman's rank
correlation (x 100) on STS-B and of the accuracy (x 100) of finding a sentence's translation among all, both ways,
each with what is lost to the dense model, the mean cosine to its vectors, and the languages that lose most. Recipes
are ours at each of the sizes, with the default row weights and with those of `--weights`; product quantization at the
bytes of the first size; int4 and int2; and the practical rival: the table in int8, cut down to the pieces that
English and Portuguese use, as is its tokenizer. Sentences get the prefix "query: ", as E5 models want them. The body
computes in bfloat16 where `--bfloat16` is given, the dense model's too.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import torch
from cluster import add_engine_option, each
from matplotlib import pyplot
from probe_stsb import encode
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from projclust.glue.ray_engine import Files, model_files, write_files
from projclust.hf.sensitivity import model_sensitivity
from projclust.recipes.recipe import Recipe
from projclust.report.plots import BLUE, GREY
from projclust.weights.choose import choose_weights
from projclust.weights.wordfreq import word_frequencies

PREFIX = "query: "
CUT_LANGUAGES = ["en", "pt"]
# Pieces that these languages use less than once in so many tokens are cut off.
CUT_RARER = 3e-8


@dataclass(frozen=True)
class Score:
    """One table: its size, and the scores by language."""

    recipe: str
    bytes: int
    stsb: dict[str, float]
    tatoeba: dict[str, float]
    cosine: dict[str, float]


class Sentences:
    """The sentences of all languages, and what a model makes of them."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.pairs: dict[str, tuple[list[str], list[str], list[float]]] = {}
        for path in sorted((folder / "stsb").glob("stsb-*-dev.csv")):
            with path.open(encoding="utf-8", newline="") as file:
                rows = _spread(list(csv.reader(file)), limit)
            first, second = [PREFIX + row[0] for row in rows], [PREFIX + row[1] for row in rows]
            self.pairs[path.name.split("-")[1]] = first, second, [float(row[2]) for row in rows]
        self.translations: dict[str, tuple[list[str], list[str]]] = {}
        for path in sorted((folder / "tatoeba").glob("tatoeba.*-eng.eng")):
            language = path.name.split(".")[1].removesuffix("-eng")
            sides = (path.with_suffix(f".{language}"), path)
            first, second = ([PREFIX + line for line in _spread(_lines(side), limit)] for side in sides)
            self.translations[language] = first, second

    def score(self, recipe: str, size: int, vectors: Callable[[list[str]], Tensor], dense: "Vectors") -> Score:
        """The scores of what makes vectors of sentences, beside those of the dense model."""
        stsb, tatoeba = {}, {}
        cosine: dict[str, float] = {}
        for language, (first, second, gold) in self.pairs.items():
            a, b = dense.compared(cosine, language, vectors(first + second)).chunk(2)
            stsb[language] = 100 * float(spearmanr((a * b).sum(1).tolist(), gold).statistic)
        for language, (first, second) in self.translations.items():
            a, b = dense.compared(cosine, f"{language}-eng", vectors(first + second)).chunk(2)
            nearest, right = a @ b.T, torch.arange(len(a))
            hits = [(nearest.argmax(side) == right).double().mean() for side in (0, 1)]
            tatoeba[language] = 100 * float(sum(hits) / 2)
        return Score(recipe, size, stsb, tatoeba, cosine)


class Vectors:
    """The dense model's vectors, kept by the language of the sentences."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def compared(self, cosine: dict[str, float], language: str, vectors: Tensor) -> Tensor:
        """The vectors; their mean cosine to the dense model's, which are the first ever seen, is entered."""
        dense = self.kept.setdefault(language, vectors)
        cosine[language] = float((vectors * dense).sum(1).mean())
        return vectors


def _spread(items: list[Any], count: int | None) -> list[Any]:
    """So many items, evenly spread: the pairs of STS-B come by their source."""
    return items if count is None else [items[len(items) * number // count] for number in range(min(count, len(items)))]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@dataclass
class Given:
    """What every table is measured on: a model, the sentences, and what the dense model made of them.

    Attributes:
        name: tells what is loaded already in a process that measures several tables.
        folder: of the model, on the machine that started; `files` are its content, where others measure.
        narrow: the body computes in bfloat16.
    """

    name: str
    folder: Path
    files: Files | None
    sentences: Sentences
    narrow: bool
    dense: Vectors


class Bench:
    """A model whose table is replaced by one after the other."""

    def __init__(self, given: Given) -> None:
        self.given = given
        with TemporaryDirectory() as place:
            folder = given.folder
            if given.files is not None:
                folder = Path(place)
                write_files(given.files, folder)
            logging.disable_progress_bar()
            self.model = AutoModel.from_pretrained(folder).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.table = self.weight.detach().clone()
        self.sensitivities: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """The table in the model."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def score(self, name: str, size: int, by: PreTrainedTokenizerBase | None = None) -> Score:
        """The scores of the model as it is, with another tokenizer where one is given."""

        def vectors(texts: list[str]) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16) if self.given.narrow else nullcontext():
                return encode(self.model, by or self.tokenizer, texts)

        return self.given.sentences.score(name, size, vectors, self.given.dense)

    def dense(self) -> Score:
        """Of the model's own table."""
        return self.score("dense", self.table.numel() * self.table.element_size())

    def of(self, recipe: Recipe) -> Score:
        """Of the table that a recipe makes."""
        weights = choose_weights(recipe, lambda: self.tokenizer, len(self.table))
        self.weight.data.copy_(self.table)
        if weights.name not in self.sensitivities:
            self.sensitivities[weights.name] = model_sensitivity(self.model, weights.draws)
        fitted = recipe.fit(self.table, weights.values, sensitivity=self.sensitivities[weights.name])
        rows = torch.cat([fitted.rows(ids) for ids in torch.arange(len(self.table)).split(4096)])
        self.weight.data.copy_(rows)
        return self.score(str(recipe).removeprefix("projective:"), fitted.bytes)

    def cut(self) -> Score:
        """Of the table cut down to what a few languages use, in int8."""
        cut, kept = cut_tokenizer(self.tokenizer, len(self.table))
        rounded = Recipe(method="int8").fit(self.table[kept].contiguous())
        self.weight.data[: len(kept)] = rounded.rows(torch.arange(len(kept)))
        return self.score(f"int8, {len(kept):,} pieces of {'+'.join(CUT_LANGUAGES)}", rounded.bytes, cut)


_BENCHES: dict[str, Bench] = {}


def measured(given: Given, recipe: Recipe | None) -> Score:
    """The scores of the table of a recipe; None stands for the table cut down."""
    if given.name not in _BENCHES:
        _BENCHES.clear()
        _BENCHES[given.name] = Bench(given)
    bench = _BENCHES[given.name]
    return bench.cut() if recipe is None else bench.of(recipe)


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with the pieces that the languages of `CUT_LANGUAGES` use, and the rows of the table they had."""
    frequencies = word_frequencies(tokenizer, n_rows, CUT_LANGUAGES).tolist()
    never = min(frequencies)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces = whole["model"]["vocab"]
    special = set(tokenizer.all_special_ids)
    kept = [row for row in range(len(pieces)) if row in special or frequencies[row] > max(CUT_RARER, never)]
    numbers = {row: number for number, row in enumerate(kept)}
    whole["model"] |= {"vocab": [pieces[row] for row in kept], "unk_id": numbers[whole["model"]["unk_id"]]}
    whole["added_tokens"] = [t | {"id": numbers[t["id"]]} for t in whole["added_tokens"] if t["id"] in numbers]
    for token in whole["post_processor"]["special_tokens"].values():
        token["ids"] = [numbers[row] for row in token["ids"]]
    names = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("pad", "unk", "cls", "sep")}
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(whole)), **names), kept


def print_score(score: Score, dense: Score) -> None:
    """A row of the table."""
    cells = [score.recipe, f"{score.bytes / 1e6:.1f}"]
    for own, whole in ((score.stsb, dense.stsb), (score.tatoeba, dense.tatoeba)):
        lost = {language: own[language] - whole[language] for language in own}
        worst = sorted(lost, key=lost.__getitem__)[:3]
        figures = f"{mean(own.values()):.2f} ({mean(lost.values()):+.2f})"
        cells += [figures, ", ".join(f"{language} {lost[language]:+.1f}" for language in worst)]
    print(f"| {' | '.join(cells)} | {mean(score.cosine.values()):.4f} |", flush=True)


def plot(scores: list[Score], path: Path) -> None:
    """What is lost on average, by the size of the table."""
    dense, *others = scores
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for axis, what, title in zip(axes, ("stsb", "tatoeba"), ("STS-B", "Tatoeba"), strict=True):
        whole = mean(getattr(dense, what).values())
        points = {score.recipe: (score.bytes / 1e6, mean(getattr(score, what).values()) - whole) for score in others}
        line = [point for recipe, point in points.items() if recipe.startswith("bits=") and ":" not in recipe]
        axis.plot(*zip(*line, strict=True), marker="o", color=BLUE, label="projclust --bits")
        rest = {recipe: point for recipe, point in points.items() if point not in line}
        for (recipe, point), marker in zip(rest.items(), "sD^vP*Xh<>", strict=False):
            axis.plot(*point, marker, color=BLUE if "weights" in recipe else GREY, label=recipe)
        axis.axhline(0, color="black", linestyle="--", linewidth=1)
        axis.set(xscale="log", xlabel="MB of the table")
        axis.set_title(f"{title}: points lost, mean of {len(getattr(dense, what))} languages")
        axis.set_xticks(ticks := [6, 12, 24, 48], list(map(str, ticks)))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="The folder of a multilingual sentence encoder.")
    parser.add_argument("--data", type=Path, default=Path("multilingual"), help="The folder of the sentences.")
    parser.add_argument("--bits", default="0.5,0.75,1,1.5,2", help="Stored bits for each weight.")
    parser.add_argument("--weights", action="append", default=[], help="Other row weights to try at the first size.")
    parser.add_argument(
        "--limit", type=int, default=None, help="Measure so many pairs of each language, evenly spread."
    )
    parser.add_argument("--bfloat16", action="store_true", help="Let the body compute in bfloat16.")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="Write the scores by language.")
    parser.add_argument("--plot", type=Path, default=None, metavar="PNG", help="Draw what is lost by size.")
    parser.add_argument("--draw", type=Path, default=None, metavar="FILE", help="Only draw what --json wrote earlier.")
    add_engine_option(parser)
    arguments = parser.parse_args()
    if arguments.draw is not None:
        plot([Score(**own) for own in json.loads(arguments.draw.read_text(encoding="utf-8"))], arguments.plot)
        return
    if not arguments.data.is_dir():
        sys.exit(f"skipped: there is no folder {arguments.data}")
    sizes = [float(bits) for bits in arguments.bits.split(",")]
    recipes = [Recipe(bits=bits) for bits in sizes]
    recipes += [Recipe(bits=sizes[0], weights=weights) for weights in arguments.weights]
    recipes += [Recipe(method="pq", bits=sizes[0]), Recipe(method="int4"), Recipe(method="int2")]
    files = None if arguments.engine is None else model_files(arguments.model)
    sentences = Sentences(arguments.data, arguments.limit)
    given = Given(uuid4().hex, arguments.model, files, sentences, arguments.bfloat16, Vectors())
    _BENCHES[given.name] = Bench(given)
    dense = _BENCHES[given.name].dense()  # first, for the others are compared with its vectors
    print("| table | MB | STS-B (lost) | most | Tatoeba (lost) | most | cosine |")
    print("| --- | ---: | ---: | --- | ---: | --- | ---: |")
    scores: list[Score] = []
    for score in chain([dense], each(arguments.engine, measured, given, [*recipes, None])):
        scores.append(score)
        print_score(score, scores[0])
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(own) for own in scores], indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        plot(scores, arguments.plot)


if __name__ == "__main__":
    main()
