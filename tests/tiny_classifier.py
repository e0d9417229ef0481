"""A tiny BERT whose vocabulary is that of the demonstration task, so that it can learn it in seconds."""

import re
from pathlib import Path

import torch
import transformers as hf

from projclust.glue.data import load_task

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_tiny_classifier(folder: Path) -> Path:
    """Write an untrained checkpoint without a head: some 2,500 rows of 16 columns, one layer, no dropout."""
    data = load_task("demo", None)
    texts = [text for rows in (data.train, *data.validation.values()) for text in rows.texts[0]]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL, *words)), encoding="utf-8")
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    hf.BertModel(config).save_pretrained(folder)
    hf.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
