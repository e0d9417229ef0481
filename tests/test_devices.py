"""Whole models on the device that --device names, against the CPU."""

from pathlib import Path

import pytest
import torch
from tiny_models import COMPRESSIONS, compressed_model, inputs_for, tiny_model, uneven_model
from torch import nn
from transformers import AutoModelForMaskedLM

from projclust import compress_model, unfreeze


@pytest.mark.parametrize("how", sorted(COMPRESSIONS))
def test_a_model_compressed_on_the_device_gives_the_logits_of_its_own_dense_table(
    how: str, device: torch.device
) -> None:
    model = (uneven_model("bert") if "adaptive" in how else tiny_model("bert")).to(device)
    compress_model(model, **COMPRESSIONS[how])
    model.to(device)
    ids = inputs_for("bert")["input_ids"].to(device)
    with torch.no_grad():
        found = model(input_ids=ids).logits
        dense = model.dequantize()(input_ids=ids).logits
    assert found.device.type == device.type
    assert torch.allclose(found, dense, atol=1e-3)


@pytest.mark.parametrize("how", sorted(COMPRESSIONS))
def test_a_checkpoint_loaded_onto_the_device_gives_the_logits_of_the_cpu(
    how: str, device: torch.device, tmp_path: Path
) -> None:
    model = compressed_model("bert", how)
    model.save_pretrained(tmp_path)
    there = AutoModelForMaskedLM.from_pretrained(tmp_path, device_map={"": device})
    ids = inputs_for("bert")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(there(input_ids=ids.to(device)).logits.cpu(), model(input_ids=ids).logits, atol=1e-3)


@pytest.mark.parametrize("how", ["equal affine", "adaptive", "auto", "int4"])
def test_training_on_the_device_lowers_the_loss(how: str, device: torch.device) -> None:
    model = unfreeze(compressed_model("bert", how).to(device)).train()
    embedding = model.get_input_embeddings()
    before = embedding.dense_weight().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = inputs_for("bert")["input_ids"].to(device)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        logits = model(input_ids=ids).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(embedding.dense_weight(), before)
