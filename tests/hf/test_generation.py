"""What a generative model says when it is asked nothing, and the row weights that come of it."""

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model

from projclust import compress_model
from projclust.errors import ProjclustError
from projclust.hf.generation import own_text, own_text_of
from projclust.recipes.recipe import Recipe
from projclust.weights.choose import choose_weights
from projclust.weights.own_text import OwnText
from projclust.weights.row_weights import RowWeights

GENERATIVE = ["gpt2", "gemma3", "qwen3", "llama-untied"]


def no_tokenizer() -> None:
    raise ProjclustError("there is no tokenizer")


@pytest.mark.parametrize("name", GENERATIVE)
def test_a_model_says_tokens_as_often_as_it_finds_them_probable(name: str) -> None:
    model = tiny_model(name)
    said = own_text(model)
    sequences, length = said.sequences.shape
    assert (sequences, length) == (96, 20)  # half of the 40 positions
    assert (said.sequences[:, 0] == 1).all()  # the token that begins a text
    logits = model(input_ids=said.sequences[:, :-1]).logits
    torch.testing.assert_close(said.probabilities, logits.softmax(-1).mean((0, 1)).double(), rtol=1e-3, atol=1e-5)
    drawn = torch.bincount(said.sequences[:, 1:].flatten(), minlength=VOCABULARY) / (96 * 19)
    torch.testing.assert_close(said.probabilities, drawn.double(), rtol=0, atol=0.02)


def test_the_seed_decides_and_nothing_is_changed() -> None:
    model = tiny_model("gpt2").train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.random.get_rng_state()
    first, second, other = own_text(model, 0), own_text(model, 0), own_text(model, 1)
    assert torch.equal(first.sequences, second.sequences)
    assert torch.equal(first.probabilities, second.probabilities)
    assert not torch.equal(first.sequences, other.sequences)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_models_own_settings_of_generation_do_not_count() -> None:
    model = tiny_model("gpt2")
    expected = own_text(model)
    model.generation_config.update(
        top_k=1, do_sample=False, max_length=3, temperature=0.01, eos_token_id=[5, 6, 7], suppress_tokens=[9]
    )
    assert torch.equal(own_text(model).sequences, expected.sequences)


def test_frequencies_count_what_begins_a_text_and_what_the_tokenizer_expects() -> None:
    said = OwnText(torch.tensor([[0, 1, 1, 2]]), torch.tensor([0.0, 0.8, 0.2, 0.0], dtype=torch.float64))
    # A quarter of the text is its beginning; nine tenths are what was said.
    expected = 0.9 * torch.tensor([0.25, 0.6, 0.15, 0.0]) + 0.1 * torch.tensor([0.0, 0.0, 0.25, 0.75])
    found = said.frequencies(torch.tensor([0.0, 0.0, 1.0, 3.0]))
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-7)
    alike = said.frequencies(None)
    assert float(alike[3]) == pytest.approx(0.1 / 4)
    assert float(alike.sum()) == pytest.approx(1)


def test_by_default_a_generative_model_is_weighed_by_its_own_text() -> None:
    model = tiny_model("gpt2")
    told: list[str] = []
    weights = choose_weights(
        Recipe(bits=4), no_tokenizer, VOCABULARY, stage=told.append, own_text=own_text_of(model, 0)
    )
    assert weights.name == "model"
    assert weights.exponent == 0.6
    assert weights.own_text is not None
    assert told == ["weighing rows by model: it generates text"]
    expected = own_text(model).frequencies(None)
    torch.testing.assert_close(weights.frequencies, expected)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_what_writes_nothing_out_of_nothing_has_no_text_of_its_own(name: str) -> None:
    assert own_text_of(tiny_model(name), 0) is None
    with pytest.raises(ProjclustError, match="generates no text; use auto"):
        RowWeights.read("model", None, no_tokenizer, VOCABULARY)


def test_a_model_whose_logits_are_not_finite_is_weighed_otherwise() -> None:
    model = tiny_model("gpt2")
    model.transformer.ln_f.weight.data.fill_(torch.nan)
    with pytest.raises(ProjclustError, match="own text cannot be made"):
        own_text(model)
    warned: list[str] = []
    weights = choose_weights(
        Recipe(bits=4), no_tokenizer, VOCABULARY, warn=warned.append, own_text=own_text_of(model, 0)
    )
    assert weights.name == "uniform"
    assert len(warned) == 1


def test_compress_model_takes_it_without_a_tokenizer() -> None:
    model = tiny_model("gpt2")
    compress_model(model, bits=8)
    assert model.config.quantization_config.weights == "model"
