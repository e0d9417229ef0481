"""Compressed models as parts of others."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import COMPRESSIONS, VOCABULARY
from torch import Tensor

from projclust import ProjclustError, compress_model
from projclust.jobs.inspect import inspect_checkpoint
from projclust.tables import CompressedTable

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


def encoder() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return hf.BertModel(hf.BertConfig(**SHAPE)).eval()


def decoder() -> hf.PreTrainedModel:
    torch.manual_seed(1)
    return hf.BertLMHeadModel(hf.BertConfig(**SHAPE, is_decoder=True, add_cross_attention=True)).eval()


@torch.no_grad()
def logits(model: hf.PreTrainedModel) -> Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))
    found: Tensor = model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits
    return found


@pytest.mark.parametrize(
    "how", [("equal", "auto"), ("adaptive", "int8"), ("auto", "equal"), (None, "auto"), ("auto", None)]
)
def test_an_encoder_decoder_of_compressed_parts_is_saved_and_loaded(
    how: tuple[str | None, str | None], tmp_path: Path
) -> None:
    first = encoder() if how[0] is None else compress_model(encoder(), **COMPRESSIONS[how[0]])
    second = decoder() if how[1] is None else compress_model(decoder(), **COMPRESSIONS[how[1]])
    first.save_pretrained(tmp_path / "encoder")
    second.save_pretrained(tmp_path / "decoder")
    model = hf.EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder").eval()
    tables = [module for module in model.modules() if isinstance(module, CompressedTable)]
    assert len(tables) == (how[0] is not None) + 2 * (how[1] is not None)
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.weight.mul_(2)  # trained, say
    expected = logits(model)
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ProjclustError, match=r"compressed by themselves \((en|de)coder"):
        inspect_checkpoint(str(tmp_path / "whole"))
    loaded = hf.EncoderDecoderModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(loaded), expected)
    loaded.save_pretrained(tmp_path / "again")
    again = hf.EncoderDecoderModel.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), expected)
    again.dequantize()
    assert torch.allclose(logits(again), expected, atol=1e-5)
    again.save_pretrained(tmp_path / "dense")
    assert torch.allclose(logits(hf.EncoderDecoderModel.from_pretrained(tmp_path / "dense")), expected, atol=1e-5)
