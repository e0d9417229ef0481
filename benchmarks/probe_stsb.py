"""Zero-shot STS-B: how much of a sentence encoder's similarity survives compression, with nothing trained.

    python benchmarks/probe_stsb.py --glue-dir path/to/glue [--model FOLDER] [--ratio 0.4]

Sentence vectors are the mean of the last hidden states over the tokens, scaled to unit length. Prints Spearman's rank
correlation (x 100) between the cosines and the gold scores of the STS-B validation set, and the mean cosine between
each sentence's vector and the dense model's, for the dense model, projective clustering with equal and with unequal
ranks, SVD and the random partition of equal size. The model is the packaged MiniLM unless another sentence encoder is
given.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_tables import add_glue_option
from datasets import disable_progress_bars, load_dataset
from minilm_forms import minilm_folder
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from projclust import compress_model


@dataclass(frozen=True)
class Score:
    """A variant's figures, both x 100 where they are correlations."""

    variant: str
    bytes: int
    spearman: float
    cosine_to_dense: float


@torch.inference_mode()
def encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> Tensor:
    """(n, d) unit sentence vectors by mean pooling."""
    vectors: list[tuple[int, Tensor]] = []
    by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(sentences), 64):
        rows = by_length[start : start + 64]
        batch = tokenizer(
            [sentences[i] for i in rows], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2).to(hidden.dtype)
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        vectors.extend(zip(rows, pooled, strict=True))
    return torch.stack([vector for _, vector in sorted(vectors, key=lambda pair: pair[0])])


def probe(folder: Path, glue_dir: str, ratio: float, k: int, seed: int = 0) -> Iterator[Score]:
    """Scores of the dense model and of each variant at the same compression rate."""
    data = load_dataset(glue_dir, "stsb", split="validation")
    first, second, gold = list(data["sentence1"]), list(data["sentence2"]), list(data["label"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = None
    for variant in ("dense", "projective", "projective, unequal ranks", "svd", "random"):
        model = AutoModel.from_pretrained(folder)
        method, _, unequal = variant.partition(", ")
        if method != "dense":
            k_of_method, ranks = 1 if method == "svd" else k, "adaptive" if unequal else "equal"
            compress_model(model, k=k_of_method, ratio=ratio, method=method, ranks=ranks, seed=seed)
        vectors = encode(model, tokenizer, first + second)
        dense = vectors if dense is None else dense
        cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(1)
        embedding = model.get_input_embeddings()
        yield Score(
            variant,
            sum(t.numel() * t.element_size() for t in embedding.state_dict().values()),
            100 * float(spearmanr(cosines.tolist(), gold).statistic),
            float((vectors * dense).sum(1).mean()),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_glue_option(parser)
    parser.add_argument("--model", type=Path, default=None, help="The folder of another sentence encoder.")
    parser.add_argument("--ratio", type=float, default=0.4, help="The fraction of the parameters to remove.")
    parser.add_argument("--k", type=int, default=5, help="The number of subspaces.")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    disable_progress_bars()
    print(f"| variant, {arguments.ratio:.0%} off | embedding bytes | STS-B Spearman x 100 | cosine to dense |")
    print("| --- | ---: | ---: | ---: |")
    for score in probe(arguments.model or minilm_folder(), arguments.glue_dir, arguments.ratio, arguments.k):
        print(f"| {score.variant} | {score.bytes:,} | {score.spearman:.2f} | {score.cosine_to_dense:.4f} |", flush=True)
