"""Train a small causal language model whose output layer is tied to its embedding, on the sentences of GLUE.

    python benchmarks/tiny_causal_lm.py models/tiny-gpt2 --glue-dir path/to/glue [--minutes 8]

So compression can be tried on a tied head with neither the Hub nor an accelerator. GPT-2's architecture of width 384
with the packaged MiniLM's tokenizer and, to start from, its word embedding. Needs the extra `demo`. Prints the
perplexity on sentences of the validation sets.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_tables import add_glue_option
from datasets import disable_progress_bars, load_dataset
from minilm_forms import minilm_folder
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils import logging

COLUMNS = {
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
}
_CONTEXT, _BATCH = 128, 8
# Tokens besides those of a batch that stand for the whole vocabulary in training.
_SAMPLED = 2048
# The rows of MiniLM's table are too long for an untrained output layer: the first logits would be far too sure.
_DEVIATION = 0.03
_RATE, _WARM_UP = 2e-3, 0.05


def glue_sentences(glue_dir: str, split: str, a_column: int | None = None) -> list[str]:
    """The sentences of a split of the tasks in `COLUMNS`, at most `a_column` of each column, in a fixed random order.

    A causal model has no use for a test set's labels, but none is read.
    """
    found = []
    for task, columns in COLUMNS.items():
        data = load_dataset(glue_dir, task, split=split)
        for column in columns:
            found += list(data[column])[:a_column]
    random.Random(0).shuffle(found)
    return found


def batches_of(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], size: int = 16
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, mask) of sentences of about equal length with a beginning and an end, padded on the right."""
    ordered = sorted(sentences, key=len)
    for start in range(0, len(ordered), size):
        batch = tokenizer(
            ordered[start : start + size], padding=True, truncation=True, max_length=_CONTEXT, return_tensors="pt"
        )
        yield batch["input_ids"], batch["attention_mask"].bool()


@torch.inference_mode()
def perplexity(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> float:
    """The perplexity of the sentences' tokens, without the first of each."""
    total, count = 0.0, 0
    for ids, mask in batches_of(tokenizer, sentences):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        told = mask[:, 1:]
        total += float(F.cross_entropy(logits[told].float(), ids[:, 1:][told], reduction="sum"))
        count += int(told.sum())
    return math.exp(total / count)


def untrained(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """The model whose embedding is MiniLM's, scaled."""
    table = AutoModel.from_pretrained(minilm_folder()).get_input_embeddings().weight.detach().float()
    config = GPT2Config(
        vocab_size=len(table),
        n_positions=_CONTEXT,
        n_embd=table.shape[1],
        n_layer=2,
        n_head=6,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table * (_DEVIATION / table.std()))
    return model


def _sampled_loss(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens, with an estimate of the sum over the vocabulary.

    The output layer would take four fifths of the time. The batch's own tokens are summed, and of the others a sample,
    each of which counts for all those that it stands for.
    """
    table = model.get_input_embeddings().weight
    own, targets = ids[:, 1:].unique(return_inverse=True)
    others = torch.ones(len(table)).index_fill(0, own, 0)
    sampled = others.multinomial(_SAMPLED)
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    logits = (hidden @ table[torch.cat([own, sampled])].T).float()
    logits = logits + torch.cat([torch.zeros(len(own)), torch.full((_SAMPLED,), float(others.sum()) / _SAMPLED).log()])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model: GPT2LMHeadModel, stream: Tensor, seconds: float) -> int:
    """Train on a stream of tokens, in order, for so many seconds; returns the tokens read.

    The learning rate follows the clock, so that it has fallen to zero when the time is over, however fast the machine.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    blocks = stream[: len(stream) // (_BATCH * _CONTEXT) * (_BATCH * _CONTEXT)].view(-1, _BATCH, _CONTEXT)
    start, step = time.monotonic(), 0
    model.train()
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(done / _WARM_UP, (1 - done) / (1 - _WARM_UP))
        ids = blocks[step % len(blocks)]
        # Three times as fast as float32 on a processor that has it, and good enough for these few steps.
        with torch.autocast("cpu", torch.bfloat16):
            loss = _sampled_loss(model, ids)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"{done:4.0%}  step {step}  perplexity {math.exp(loss.item()):.0f}", flush=True)
        step += 1
    model.eval()
    return step * _BATCH * _CONTEXT


def main(target: Path, glue_dir: str, minutes: float) -> None:
    """Train, save and measure."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    # Its folder asks for MiniLM's own length.
    tokenizer.model_max_length = _CONTEXT
    rows = tokenizer(glue_sentences(glue_dir, "train"), truncation=True, max_length=_CONTEXT)["input_ids"]
    stream = torch.tensor([token for row in rows for token in row])
    model = untrained(tokenizer)
    read = train(model, stream, 60 * minutes)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    held_out = glue_sentences(glue_dir, "validation", 500)[:500]
    print(f"read {read:,} of {len(stream):,} tokens; held-out perplexity {perplexity(model, tokenizer, held_out):.1f}")
    print(f"written: {target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="The folder in which to write the checkpoint.")
    add_glue_option(parser)
    parser.add_argument("--minutes", type=float, default=8, help="How long to train.")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    disable_progress_bars()
    main(arguments.target, arguments.glue_dir, arguments.minutes)
