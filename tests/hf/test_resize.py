"""Tokens that a vocabulary gains or loses after the compression: what transformers does to the dense twin is done."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from damaging import rewrite, state, stated
from safetensors.torch import load_file
from tiny_models import COMPRESSIONS, ENCODER_DECODERS, VOCABULARY, compressed_model, inputs_for, logits, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from projclust import CheckpointError, ProjclustError, compress_model
from projclust.jobs.expand import expand_checkpoint
from projclust.jobs.inspect import inspect_checkpoint
from projclust.jobs.options import ExpandOptions
from projclust.tables import CompressedTable

MORE, FEWER = VOCABULARY + 7, 60


def any_tokens(name: str, height: int) -> dict[str, Tensor]:
    ids = torch.randint(height, (2, 9), generator=torch.Generator().manual_seed(2))
    ids[0, :2] = torch.tensor([0, height - 1])
    return {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if name in ENCODER_DECODERS else {})}


@torch.no_grad()
def outputs(model: PreTrainedModel, name: str, height: int) -> Tensor:
    found: Tensor = model(**any_tokens(name, height))[0]
    return found


def resized(model: PreTrainedModel, height: int | None, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model.resize_token_embeddings(height, **options)
    return model


@pytest.mark.parametrize("height", [MORE, FEWER])
@pytest.mark.parametrize("how", list(COMPRESSIONS))
@pytest.mark.parametrize("name", ["bert", "gpt2", "gemma3", "t5", "bart", "llama-untied"])
def test_a_resized_model_is_its_resized_dense_twin_and_loads_again(
    name: str, how: str, height: int, tmp_path: Path
) -> None:
    model = compressed_model(name, how)
    before = model.get_input_embeddings().dense_weight()
    dense = resized(copy.deepcopy(model).dequantize(), height)
    table = resized(model, height).get_input_embeddings()
    assert isinstance(table, CompressedTable)
    kept = min(height, VOCABULARY)
    assert torch.equal(table.dense_weight()[:kept], before[:kept])
    assert torch.equal(table.dense_weight()[kept:], dense.get_input_embeddings().weight[kept:])
    assert model.config.vocab_size == table.num_embeddings == height
    assert outputs(model, name, height).shape == outputs(dense, name, height).shape
    assert torch.allclose(outputs(model, name, height), outputs(dense, name, height), atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, name, height), outputs(model, name, height))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", ["equal", "adaptive", "auto"])
def test_the_same_size_changes_nothing(how: str, tmp_path: Path) -> None:
    model = compressed_model("bert", how)
    model.save_pretrained(tmp_path / "before")
    assert model.resize_token_embeddings(VOCABULARY) is model.get_input_embeddings()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    model.save_pretrained(tmp_path / "after")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()
    assert "added_rows" not in stated(tmp_path / "after")


@pytest.mark.parametrize("how", ["adaptive", "int4"])
def test_sizes_come_and_go(how: str) -> None:
    model = compressed_model("bert", how)
    table, before = model.get_input_embeddings(), model.get_input_embeddings().dense_weight()
    grown = resized(model, MORE).get_input_embeddings()
    assert grown is table  # hooks on it stay
    rows = table.dense_weight()
    assert torch.equal(resized(model, MORE + 3).get_input_embeddings().dense_weight()[:MORE], rows)
    assert torch.equal(resized(model, VOCABULARY + 2).get_input_embeddings().added, rows[VOCABULARY:][:2])
    assert resized(model, VOCABULARY).get_input_embeddings().added is None
    assert torch.equal(model.get_input_embeddings().dense_weight(), before)
    assert resized(model, VOCABULARY, pad_to_multiple_of=64).config.vocab_size == 128
    assert resized(model, None, pad_to_multiple_of=50).config.vocab_size == 150


def test_new_rows_are_near_the_mean_unless_that_is_not_wanted() -> None:
    table = compressed_model("gpt2", "auto").get_input_embeddings().dense_weight()
    near = resized(compressed_model("gpt2", "auto"), MORE).get_input_embeddings().added
    assert torch.allclose(near, table.mean(0).expand_as(near), atol=1e-3)
    free = resized(compressed_model("gpt2", "auto"), MORE, mean_resizing=False).get_input_embeddings().added
    assert not torch.allclose(free, table.mean(0).expand_as(free), atol=1e-3)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_new_rows_learn_and_padding_does_not(how: str, tmp_path: Path) -> None:
    dense = tiny_model("gpt2")
    model = resized(compress_model(dense, **COMPRESSIONS[how]), MORE)
    model.config.pad_token_id = MORE - 1
    table = model.get_input_embeddings()
    table.padding_idx = MORE - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.tensor([[5, VOCABULARY, VOCABULARY + 1, MORE - 1]])
    table(ids).square().sum().backward()
    before = table.added.detach().clone()
    optimizer.step()
    changed = (table.added != before).any(1).nonzero().flatten().tolist()
    assert changed == [0, 1]
    model.save_pretrained(tmp_path)
    loaded = hf.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().added, table.added)
    for outside in (MORE, -1):
        with pytest.raises(IndexError):
            loaded.get_input_embeddings()(torch.tensor([[outside]]))


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_in_training_the_heads_new_rows_are_the_embeddings(how: str) -> None:
    model = resized(compressed_model("gpt2", how), MORE)
    ids = any_tokens("gpt2", MORE)["input_ids"]
    twin = copy.deepcopy(model).dequantize()
    for one in (model, twin):
        one(ids, labels=ids).loss.backward()
    found = model.get_input_embeddings().added.grad
    assert torch.allclose(found, twin.get_input_embeddings().weight.grad[VOCABULARY:], atol=1e-5)


def test_half_precision_and_compilers() -> None:
    torch.compiler.reset()
    for how in ("equal", "auto"):
        model = resized(compressed_model("bert", how), MORE)
        ids, expected = any_tokens("bert", MORE)["input_ids"], outputs(model, "bert", MORE)
        compiled = torch.compile(model.get_input_embeddings(), backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(ids), model.get_input_embeddings()(ids), atol=1e-6)
        assert torch.allclose(outputs(model.to(torch.bfloat16), "bert", MORE).float(), expected, atol=0.1)


@pytest.mark.parametrize("how", ["equal", "int8"])
def test_inspect_and_expand_count_them(how: str, tmp_path: Path) -> None:
    model = resized(compressed_model("bert", how), MORE)
    model.save_pretrained(tmp_path / "grown")
    shown = inspect_checkpoint(str(tmp_path / "grown")).as_json()
    parts = {name.rpartition(".")[2]: part for name, part in shown["parts"].items()}
    assert shown["n"] == MORE
    assert parts["added"] == {"shape": (7, 16), "dtype": "F32", "bytes": 7 * 16 * 4}
    assert sum(part["bytes"] for part in parts.values()) == shown["bytes_stored"]
    expand_checkpoint(ExpandOptions(str(tmp_path / "grown"), output=str(tmp_path / "dense")))
    dense = load_file(tmp_path / "dense/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(dense, model.get_input_embeddings().dense_weight())


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_damaged_new_rows_stop_the_load(how: str, tmp_path: Path) -> None:
    resized(compressed_model("bert", how), MORE).save_pretrained(tmp_path)
    key = "bert.embeddings.word_embeddings.added"
    rewrite(tmp_path, lambda tensors: tensors[key].mul_(2))
    with pytest.raises(CheckpointError, match="are not those that were saved"):
        hf.BertForMaskedLM.from_pretrained(tmp_path)
    state(tmp_path, sha256=None)
    rewrite(tmp_path, lambda tensors: tensors[key].mul_(float("nan")))
    with pytest.raises(CheckpointError, match="added has NaN"):
        hf.BertForMaskedLM.from_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({key: tensors[key][:5].clone()}))
    with pytest.raises(CheckpointError, match="added has shape"):
        hf.BertForMaskedLM.from_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match="added is missing"):
        hf.BertForMaskedLM.from_pretrained(tmp_path)
    for wrong in (0, -7, "7", True):
        state(tmp_path, added_rows=wrong)
        with pytest.raises(CheckpointError, match="added_rows"):
            hf.BertForMaskedLM.from_pretrained(tmp_path)


def test_what_cannot_be_resized_stays_as_it_was() -> None:
    model = compressed_model("bert", "equal")
    expected = logits(model, "bert")
    with pytest.raises(ProjclustError, match="its table has 3 clusters"):
        model.resize_token_embeddings(2)
    with pytest.raises(ValueError, match="not and integer"):
        model.resize_token_embeddings(MORE, pad_to_multiple_of=8.0)
    assert torch.equal(logits(model, "bert"), expected)


def test_dense_models_are_resized_as_ever_and_nothing_keeps_a_model() -> None:
    model = compressed_model("bert", "auto")
    dense = resized(tiny_model("bert"), MORE)
    assert type(dense.get_input_embeddings()) is torch.nn.Embedding
    assert dense(inputs_for("bert")["input_ids"]).logits.shape[-1] == MORE
    copied = resized(copy.deepcopy(model), MORE)
    assert (copied.config.vocab_size, model.config.vocab_size) == (MORE, VOCABULARY)
    resized(model, MORE)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("height", [MORE, 80])
def test_an_output_layer_that_is_stored_as_integers_is_resized(height: int, tmp_path: Path) -> None:
    model = compress_model(tiny_model("llama-untied"), **COMPRESSIONS["auto"], body="int8")
    head = model.get_output_embeddings().weight.detach().clone()
    kept = min(height, VOCABULARY)
    resized(model, height).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.get_output_embeddings().weight[:kept], head[:kept])
    assert torch.allclose(outputs(loaded, "llama-untied", height), outputs(model, "llama-untied", height), atol=0.01)
