"""Sizes of whole models: met from below, split by what the outputs lose."""

from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import tiny_model

from projclust import OptionError, ProjclustError, compress_model
from projclust.hf.body import rounded
from projclust.hf.whole import best_recipe, recipes_of_size
from projclust.options import Body
from projclust.recipes.recipe import Recipe
from projclust.weights.row_weights import RowWeights

N, D = 2000, 64


def wide_model() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    return hf.BertModel(hf.BertConfig(vocab_size=N, **shape)).eval()


def recipe(size: int, **more: Any) -> Recipe:
    return Recipe.of({"size": str(size), "of": "model", "weights": "uniform", **more})


@pytest.mark.parametrize(("size", "body"), [(160_000, None), (220_000, None), (180_000, "int8"), (140_000, "int4")])
def test_the_file_meets_the_size_from_below(size: int, body: str | None, tmp_path: Any) -> None:
    model = wide_model()
    compress_model(model, size=str(size), of="model", weights="uniform", body=body)
    model.save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert 0.98 * size < written <= size
    assert body is None or model.config.quantization_config.body == body


def test_bytes_that_eight_bits_everywhere_leave_over_are_not_filled(tmp_path: Any) -> None:
    model = wide_model()
    compress_model(model, size="400KB", of="model", weights="uniform")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 300_000
    assert model.config.quantization_config.body == "int8"
    # Where the table alone can pay for it, the body stays as it is.
    recipes = recipes_of_size(wide_model(), recipe(900_000))
    assert [one.body for one in recipes] == [None]


def test_the_body_is_the_one_with_which_the_outputs_change_least() -> None:
    model = wide_model()
    recipes = recipes_of_size(model, recipe(170_000))
    assert [one.body for one in recipes] == ["int8", "int4"]
    with torch.no_grad():  # nothing but the table matters, so it gets the bytes
        for name, parameter in model.encoder.named_parameters():
            parameter.mul_(0.01 if name.endswith("output.dense.weight") else 1)
    assert best_recipe(model, recipes, RowWeights()).body == "int4"
    model = wide_model()
    with torch.no_grad():  # all rows are alike, so the body gets them
        model.get_input_embeddings().weight.copy_(torch.randn(1, D) + 0.001 * torch.randn(N, D))
    assert best_recipe(model, recipes, RowWeights()).body == "int8"


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = wide_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    best_recipe(model, recipes_of_size(model, recipe(170_000)), RowWeights())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(KeyError), rounded(model, Body.INT4):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("size", "more", "message"),
    [
        (60_000, {}, "too small: the least for this model is 10[0-9],[0-9]+ bytes"),
        (60_000, {"body": "int8"}, "too small: the least for this model is 1[0-9]+,[0-9]+ bytes"),
        (10_000_000, {}, "the model has [0-9,]+ bytes as it is: `size` must be less"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: int, more: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        recipes_of_size(wide_model(), recipe(size, **more))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1.0, "of": "model"}, "give `size`"),
        ({"size": "1MB", "of": "model", "codes": "int8"}, "needs codes auto"),
        ({"size": "1MB", "of": "file"}, "`size_of` must be one of embedding, model"),
        ({"bits": 1.0, "body": "int2"}, "`body` must be one of int8, int4"),
        ({"method": "int8", "body": "int8"}, "takes no options but `bits`: drop `body`"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe.of(options)


def test_a_model_without_other_weights_says_so() -> None:
    model = tiny_model("bert")  # whose weights are too small to be worth it
    with pytest.raises(ProjclustError, match="no weights beside its table"):
        compress_model(model, bits=6.0, weights="uniform", body="int8")
