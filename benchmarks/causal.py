"""What a causal model whose output layer reads the embedding loses, beside other codes; nothing is trained.

    python benchmarks/causal.py MODEL --glue-dir path/to/glue [--tatoeba FOLDER] [--bits 1,2,3,3.5] [--json FILE]

Prints for the dense model and every recipe the bits of a weight and the size of the table, the perplexity on sentences
of QNLI's validation set, the mean KL divergence in nats of the next token's distribution from the dense model's, how
often both hold the same token for the most probable one, and with `--tatoeba` (files `tatoeba.LANG-eng.LANG` of
LASER's test set) the divergence on sentences in other languages. Recipes are ours at each size, with the default row
weights; int8, int4, int3 and int2; product quantization at 2 bits. Last, the tokens a second of `generate` with the
table at `--speed` bits and with the dense one, in one run.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench_tables import add_glue_option
from datasets import disable_progress_bars, load_dataset
from matplotlib import pyplot
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from projclust.hf.compression import compress_embedding
from projclust.hf.generation import own_text_of
from projclust.hf.sensitivity import model_sensitivity
from projclust.recipes.recipe import Recipe
from projclust.report.plots import BLUE, GREY
from projclust.weights.choose import choose_weights

_SENTENCES, _OF_A_LANGUAGE, _TOKENS, _BATCH = 120, 6, 64, 4
_GENERATED, _ROUNDS = 64, 5


@dataclass(frozen=True)
class Score:
    """One table: its size, and what the model says with it."""

    recipe: str
    bytes: int
    bits: float
    perplexity: float
    divergence: float
    same_token: float
    divergence_of_languages: float | None


@dataclass(frozen=True)
class Said:
    """Sums over the places of some sentences."""

    surprise: float
    divergence: float
    same: float


class Text:
    """Sentences, and the dense model's last word on them: the states that its output layer reads."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> None:
        encoded = [tokenizer(text, return_tensors="pt").input_ids[0, :_TOKENS] for text in sentences]
        encoded = sorted((ids for ids in encoded if len(ids) > 1), key=len)
        self._batches = [encoded[start : start + _BATCH] for start in range(0, len(encoded), _BATCH)]
        self._states = [states for states, _ in self._read(model)]
        self._dense = model.get_input_embeddings().weight.detach().clone()

    @torch.inference_mode()
    def said(self, model: PreTrainedModel) -> Said:
        """What a model with another table says, on average over all places."""
        head, weight = model.get_output_embeddings(), model.get_input_embeddings().weight
        other = weight.detach().clone()
        sums, places = torch.zeros(3, dtype=torch.float64), 0
        for kept, (states, ids) in zip(self._states, self._read(model), strict=True):
            found = head(states).float().log_softmax(1)
            weight.copy_(self._dense)
            exact = head(kept).float().log_softmax(1)
            weight.copy_(other)
            surprise = -found.gather(1, ids.unsqueeze(1)).double().sum()
            divergence = torch.linalg.vecdot(exact.exp(), exact - found).double().sum()
            same = (found.argmax(1) == exact.argmax(1)).double().sum()
            sums += torch.stack([surprise, divergence, same])
            places += len(ids)
        return Said(*(sums / places).tolist())

    @torch.inference_mode()
    def _read(self, model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """(places, h) the states of each batch, and (places,) the tokens that follow."""
        for batch in self._batches:
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(own) for own in batch], batch_first=True)
            told = mask[:, 1:].bool()
            yield model.base_model(input_ids=ids, attention_mask=mask)[0][:, :-1][told], ids[:, 1:][told]


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[Text], recipes: list[Recipe]
) -> Iterator[Score]:
    """Scores of the dense model and of every recipe."""
    weight = model.get_input_embeddings().weight
    table = weight.detach().clone()

    def score(name: str, size: int) -> Score:
        first, *others = [text.said(model) for text in texts]
        rest = others[0].divergence if others else None
        bits = 8 * size / table.numel()
        return Score(name, size, bits, math.exp(first.surprise), first.divergence, first.same, rest)

    yield score("dense", table.numel() * table.element_size())
    weights = choose_weights(Recipe(bits=1), lambda: tokenizer, len(table), own_text=own_text_of(model, 0))
    sensitivity = model_sensitivity(model, weights.draws, own_text=weights.own_text)
    for recipe in recipes:
        fitted = recipe.fit(table, weights.values, sensitivity=sensitivity)
        rows = torch.cat([fitted.rows(ids) for ids in torch.arange(len(table)).split(4096)])
        weight.data.copy_(rows)
        yield score(str(recipe).removeprefix("projective:"), fitted.bytes)
        weight.data.copy_(table)


def speed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bits: float) -> None:
    """Print the tokens a second of `generate`, of the dense model and of the compressed one; the best of rounds."""
    ids = tokenizer("The house stands", return_tensors="pt").input_ids
    found = {"dense": _tokens_a_second(model, ids)}
    n = model.get_input_embeddings().num_embeddings
    recipe = Recipe(bits=bits)
    weights = choose_weights(recipe, lambda: tokenizer, n, own_text=own_text_of(model, 0))
    compress_embedding(model, recipe, weights)
    model.get_input_embeddings().prepare()
    found["compressed"] = _tokens_a_second(model, ids)
    ratio = found["compressed"] / found["dense"]
    print(
        f"\ntokens a second, {torch.get_num_threads()} threads: dense {found['dense']:.1f}, "
        f"{bits:g} bits {found['compressed']:.1f}: {ratio:.2f} times as many"
    )


def _tokens_a_second(model: PreTrainedModel, ids: Tensor) -> float:
    best = 0.0
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        said = model.generate(ids, do_sample=False, max_new_tokens=_GENERATED, min_new_tokens=_GENERATED)
        best = max(best, (said.shape[1] - ids.shape[1]) / (time.perf_counter() - started))
    return best


def plot(scores: list[Score], path: Path) -> None:
    """Perplexity and divergence by the bits of a weight."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for axis, what in zip(axes, ("perplexity", "divergence"), strict=True):
        line = [(own.bits, getattr(own, what)) for own in scores if own.recipe.startswith("bits=")]
        axis.plot(*zip(*sorted(line), strict=True), marker="o", color=BLUE, label="projclust --bits")
        rest = [own for own in scores[1:] if not own.recipe.startswith("bits=")]
        for own, marker in zip(rest, "sD^vP*", strict=False):
            axis.plot(own.bits, getattr(own, what), marker, color=GREY, label=own.recipe)
        axis.set(xlabel="bits a weight of the table", yscale="log", title=what)
        axis.grid(alpha=0.3)
    axes[0].axhline(scores[0].perplexity, color="black", linestyle="--", linewidth=1, label="dense")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=7)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="The folder of a causal model.")
    add_glue_option(parser)
    parser.add_argument("--tatoeba", type=Path, default=None, help="A folder of sentences in other languages.")
    parser.add_argument("--bits", default="0.5,1,1.5,2,3,3.5,4", help="Stored bits for each weight.")
    parser.add_argument("--others", default="int8,int4,int3,int2,pq:bits=2", help="Baselines.")
    parser.add_argument(
        "--speed", type=float, default=2.0, metavar="BITS", help="Time generation at this size; 0: not."
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="Write the scores.")
    parser.add_argument("--plot", type=Path, default=None, metavar="PNG", help="Draw the curve.")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval().requires_grad_(False)
    sentences = load_dataset(str(arguments.glue_dir), "qnli", split="validation")["sentence"][:_SENTENCES]
    texts = [Text(model, tokenizer, list(sentences))]
    if arguments.tatoeba is not None:
        files = sorted(path for path in arguments.tatoeba.glob("tatoeba.*-eng.*") if path.suffix != ".eng")
        lines = [path.read_text(encoding="utf-8").splitlines()[:_OF_A_LANGUAGE] for path in files]
        texts.append(Text(model, tokenizer, [line for own in lines for line in own]))
    recipes = [Recipe(bits=float(bits)) for bits in arguments.bits.split(",")]
    recipes += [Recipe.parse(text) for text in arguments.others.split(",") if text]
    print("| table | bits | MB | perplexity | KL | same token | KL, other languages |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    scores: list[Score] = []
    for own in measure(model, tokenizer, texts, recipes):
        scores.append(own)
        rest = "" if own.divergence_of_languages is None else f"{own.divergence_of_languages:.3f}"
        cells = [f"{own.bits:.2f}", f"{own.bytes / 1e6:.1f}", f"{own.perplexity:.2f}", f"{own.divergence:.4f}"]
        print(f"| {' | '.join([own.recipe, *cells, f'{own.same_token:.1%}', rest])} |", flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    if arguments.plot is not None:
        plot(scores, arguments.plot)
    if arguments.speed:
        speed(model, tokenizer, arguments.speed)


if __name__ == "__main__":
    main()
