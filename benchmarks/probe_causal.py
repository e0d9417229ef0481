"""What coding a tied embedding costs a causal language model, with nothing trained, for each kind of sensitivity.

    python benchmarks/probe_causal.py MODEL --glue-dir path/to/glue [--bits 1.0 0.5]

MODEL is a checkpoint with a tied head, such as that of tiny_causal_lm.py. Prints the perplexity on 500 sentences of
GLUE's validation sets and the mean KL divergence, in nats, of the next token's distribution from the dense model's.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_tables import add_glue_option
from datasets import disable_progress_bars
from tiny_causal_lm import batches_of, glue_sentences
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from projclust.coding.fit import fit_coded
from projclust.hf.sensitivity import ridged_power, sensitivities
from projclust.tables.coded import CodedEmbedding
from projclust.weights.importance import row_weights
from projclust.weights.wordfreq import word_frequencies

SENTENCES = 500


def decoded(table: Tensor, bits: float, weight: Tensor, sensitivity: Tensor | None) -> Tensor:
    """(n, d) the table as it is read after coding at so many bits a weight."""
    coded = fit_coded(table, int(bits * table.numel() / 8), weight, sensitivity)
    embedding = CodedEmbedding(coded.shape, dtype=table.dtype)
    embedding.set_stored(coded.stored)
    return embedding.dense_weight()


@torch.inference_mode()
def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], dense: Tensor, other: Tensor
) -> tuple[float, float]:
    """The perplexity of the model with another table, and its mean KL divergence from the dense model."""
    weight = model.get_input_embeddings().weight
    surprise = divergence = 0.0
    count = 0
    for ids, mask in batches_of(tokenizer, sentences):
        told = mask[:, 1:]
        found = []
        for table in (dense, other):
            weight.copy_(table)
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1][told]
            found.append(F.log_softmax(logits.float(), dim=1))
        surprise += float(F.nll_loss(found[1], ids[:, 1:][told], reduction="sum"))
        divergence += float(F.kl_div(found[1], found[0], reduction="sum", log_target=True))
        count += int(told.sum())
    weight.copy_(dense)
    return math.exp(surprise / count), divergence / count


def main(folder: Path, glue_dir: str, bits: list[float], exponent: float) -> None:
    """Print a table of scores."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sentences = glue_sentences(glue_dir, "validation", SENTENCES)[:SENTENCES]
    table = model.get_input_embeddings().weight.detach().clone()
    frequencies = word_frequencies(tokenizer, len(table))
    gradients, states = sensitivities(model, frequencies)
    matrices = {"input gradients": gradients}
    if states is not None:
        matrices |= {"logits": states, "both": (gradients + states) / 2}
    choices: dict[str, Tensor | None] = {"none": None}
    for name, matrix in matrices.items():
        choices |= {f"{name}, power {power}": ridged_power(matrix, power) for power in (0.25, 0.5)}
    print("| bits a weight | sensitivity | perplexity | KL divergence |")
    print("| ---: | --- | ---: | ---: |")
    print(f"| dense | | {scores(model, tokenizer, sentences, table, table)[0]:.2f} | 0 |", flush=True)
    for rate in bits:
        for name, sensitivity in choices.items():
            other = decoded(table, rate, row_weights(frequencies, exponent), sensitivity)
            perplexity, divergence = scores(model, tokenizer, sentences, table, other)
            print(f"| {rate} | {name} | {perplexity:.2f} | {divergence:.4f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="The folder of the checkpoint.")
    add_glue_option(parser)
    parser.add_argument("--bits", type=float, nargs="+", default=[1.0, 0.5], help="Stored bits for each weight.")
    parser.add_argument(
        "--exponent", type=float, default=0.35, help="The power of the frequencies that weighs the rows."
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    disable_progress_bars()
    main(arguments.model, arguments.glue_dir, arguments.bits, arguments.exponent)
