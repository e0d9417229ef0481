"""Tied in config.json and not in the file, or in the file under the other's name; dense under a compressed config."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_models import compressed_model, logits, tiny_model
from torch import Tensor, nn

from projclust import ProjclustError, compress_model
from projclust.errors import CheckpointError
from projclust.jobs.compress import compress_checkpoint
from projclust.jobs.expand import expand_checkpoint
from projclust.jobs.inspect import inspect_checkpoint
from projclust.jobs.options import CompressOptions, ExpandOptions, PlanOptions
from projclust.jobs.plan import plan_checkpoint
from projclust.recipes.recipe import Recipe
from projclust.tables import CompressedTable

HEADS = {"gpt2": "lm_head", "qwen3": "lm_head", "bert": "cls.predictions.decoder", "t5": "lm_head"}
TABLES = {"gpt2": "transformer.wte", "qwen3": "model.embed_tokens", "bert": "bert.embeddings.word_embeddings"}
RECIPES: dict[str, dict[str, Any]] = {
    "bits": {"bits": 6.0, "sensitivity": "none", "weights": "uniform"},
    "floats": {"k": 3, "j": 15},
    "int8": {"k": 3, "j": 15, "codes": "int8"},
}


def other_table() -> Tensor:
    return 0.3 * torch.randn(120, 16, generator=torch.Generator().manual_seed(3))


def saved_with_a_head(name: str, folder: Path) -> None:
    """A tied model whose file holds another output layer, as one has it into which an adapter was merged."""
    tiny_model(name).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    save_file({**state, f"{HEADS[name]}.weight": other_table()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("how", RECIPES)
@pytest.mark.parametrize("name", TABLES)
def test_an_output_layer_that_is_another_stays_as_it_is(name: str, how: str, tmp_path: Path) -> None:
    saved_with_a_head(name, tmp_path / "dense")
    kind = type(tiny_model(name))
    dense = logits(kind.from_pretrained(tmp_path / "dense"), name)
    options = CompressOptions(str(tmp_path / "dense"), Recipe.of(RECIPES[how]), output=str(tmp_path / "out"))
    report = compress_checkpoint(options)
    assert [part.name for part in report.dense_parts] == [f"{HEADS[name]}.weight"]
    loaded, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(loaded.get_output_embeddings().weight, other_table())
    assert isinstance(loaded.get_input_embeddings(), CompressedTable)
    assert torch.cosine_similarity(logits(loaded, name).flatten(), dense.flatten(), 0) > 0.99
    loaded.tie_weights()
    assert torch.equal(loaded.get_output_embeddings().weight, other_table())
    expand_checkpoint(ExpandOptions(str(tmp_path / "out"), output=str(tmp_path / "expanded")))
    expanded = kind.from_pretrained(tmp_path / "expanded")
    assert torch.allclose(logits(expanded, name), logits(loaded, name), atol=1e-5)
    assert not expanded.config.tie_word_embeddings
    if name == "bert":  # whose bias was tied to another beside the table
        assert torch.equal(expanded.cls.predictions.decoder.bias, loaded.cls.predictions.decoder.bias)
        assert loaded.cls.predictions.decoder.bias.any()


@pytest.mark.parametrize("how", RECIPES)
def test_an_output_layer_merged_in_memory_stays_as_it_is(how: str, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.lm_head.weight = nn.Parameter(other_table())
    compress_model(model, **RECIPES[how]).save_pretrained(tmp_path)
    for own in (model, hf.AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(own.lm_head.weight, other_table())
        assert torch.equal(copy.deepcopy(own).dequantize().lm_head.weight, other_table())


@pytest.mark.parametrize("how", RECIPES)
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_twin_check_alone_would_notice_another_output_layer(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projclust.hf.compression.settle_ties", lambda model: None)
    monkeypatch.setattr(Recipe, "fit_to", lambda *_: pytest.fail("a table was fitted"))
    saved_with_a_head(name, tmp_path)
    model = type(tiny_model(name)).from_pretrained(tmp_path)
    with pytest.raises(ProjclustError, match="answers otherwise"):
        compress_model(model, **RECIPES[how])


def test_an_equal_output_layer_is_a_tied_one(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    compress_model(model, **RECIPES["int8"])
    assert isinstance(model.lm_head, CompressedTable)
    assert model.config.tie_word_embeddings


def test_an_output_layer_of_its_own_beside_others_that_are_tied_is_refused_by_name(tmp_path: Path) -> None:
    saved_with_a_head("t5", tmp_path)
    model = hf.T5ForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ProjclustError, match="lm_head.weight is another than shared.weight"):
        compress_model(model, **RECIPES["floats"])
    assert model.config.tie_word_embeddings
    assert type(model.get_input_embeddings()) is nn.Embedding


@pytest.mark.parametrize("name", TABLES)
def test_a_tied_table_under_the_output_layers_name_is_found(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    tiny_model(name).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state[f"{HEADS[name]}.weight"] = state.pop(f"{TABLES[name]}.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    size = 120 * 16 * 4
    assert inspect_checkpoint(str(folder)).bytes_stored == size
    assert plan_checkpoint(PlanOptions(str(folder), bits=(4.0,), weights="uniform")).bytes_dense == size
    options = CompressOptions(str(folder), Recipe.of(RECIPES["int8"]), output=str(tmp_path / "out"))
    report = compress_checkpoint(options)
    assert report.bytes_dense == size
    assert 0 < (report.bytes_stored or 0) < size
    loaded = type(tiny_model(name)).from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(loaded, name), logits(tiny_model(name), name), atol=0.1)


@pytest.mark.parametrize("how", ["equal", "adaptive", "auto", "int8"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_model_made_from_a_compressed_config_is_dense_and_loads_again(name: str, how: str, tmp_path: Path) -> None:
    compressed = compressed_model(name, how)
    compressed.save_pretrained(tmp_path / "compressed")
    made = type(compressed)(hf.AutoConfig.from_pretrained(tmp_path / "compressed")).eval()
    made.save_pretrained(tmp_path / "made")
    loaded, info = type(compressed).from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded, name), logits(made, name))
    loaded.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()
    compress_model(loaded, k=2, j=3)
    with pytest.raises(CheckpointError, match="holds a dense .* `projclust expand`"):
        inspect_checkpoint(str(tmp_path / "made"))
    expand_checkpoint(ExpandOptions(str(tmp_path / "made"), output=str(tmp_path / "expanded")))
    assert inspect_checkpoint(str(tmp_path / "expanded")).compressed is False
