"""A compressed model answers as a dense one with the same rows does, or is refused before anything is fitted."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import BUILDERS, inputs_for, logits, tiny_model
from torch import Tensor, nn

from projclust import ProjClustConfig, compress_model
from projclust.errors import ProjclustError
from projclust.recipes.recipe import Recipe
from projclust.tables import CodedLMHead, CodedTable, ProjectiveEmbedding, ProjectiveLMHead

CODED: dict[str, Any] = {"bits": 4, "weights": "uniform", "sensitivity": "none"}
INT8: dict[str, Any] = {"k": 2, "j": 6, "codes": "int8"}
FLOATS: dict[str, Any] = {"k": 2, "j": 6}
ADAPTIVE: dict[str, Any] = {"k": 2, "j": 6, "ranks": "adaptive"}


def mamba() -> hf.MambaForCausalLM:
    """Its logits are of what `lm_head.weight.dtype` makes of the states: of bytes, zeros."""
    torch.manual_seed(0)
    shape = {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    return hf.MambaForCausalLM(hf.MambaConfig(**shape, bos_token_id=1, eos_token_id=2)).eval()


@pytest.fixture
def bytes_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coded layers whose weight is what it was before: the bytes of codes."""
    monkeypatch.setattr(CodedTable, "_dense_stand_in", lambda self: self.codes)


def refuse_to_fit(*_: Any) -> None:
    pytest.fail("a table was fitted")


@pytest.mark.parametrize("options", [CODED, INT8, FLOATS], ids=["bits", "int8", "floats"])
def test_mamba_generates_what_its_expanded_twin_generates(options: dict[str, Any], tmp_path: Path) -> None:
    model = compress_model(mamba(), **options)
    model.save_pretrained(tmp_path)
    for own in (model, hf.AutoModelForCausalLM.from_pretrained(tmp_path)):
        dense = copy.deepcopy(own).dequantize()
        assert float(logits(own, "mamba").abs().max()) > 0.1
        assert torch.allclose(logits(own, "mamba"), logits(dense, "mamba"), atol=1e-5)
        prompt = inputs_for("mamba")["input_ids"]
        arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        said = own.generate(prompt, **arguments)
        assert torch.equal(said, dense.generate(prompt, **arguments))
        assert said[:, prompt.shape[1] :].any()


@pytest.mark.usefixtures("bytes_for_weights")
@pytest.mark.parametrize("options", [CODED, INT8], ids=["bits", "int8"])
def test_a_model_that_looks_at_the_dtype_of_codes_is_refused_before_the_fit(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recipe, "fit_to", refuse_to_fit)
    model = mamba()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    with pytest.raises(ProjclustError, match=r"MambaForCausalLM reads its embedding in a way of its own.*twin_check"):
        compress_model(model, **options)
    assert torch.equal(torch.random.get_rng_state(), random)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.usefixtures("bytes_for_weights")
def test_the_check_can_be_left_out(tmp_path: Path) -> None:
    compress_model(mamba(), twin_check=False, **INT8)
    mamba().save_pretrained(tmp_path)
    config = ProjClustConfig(2, 6, codes="int8", twin_check=False)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert "twin_check" not in model.config.to_json_string()
    with pytest.raises(ProjclustError, match="twin_check"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ProjClustConfig(2, 6, codes="int8"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [INT8, FLOATS, ADAPTIVE], ids=["int8", "floats", "adaptive"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_no_model_that_works_is_refused(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny_model(name).to(dtype).train()
    others = {own: value.clone() for own, value in model.state_dict().items() if value.shape != (120, 16)}
    compress_model(model, **options, restarts=1, max_iter=1)
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(value, after[own]) for own, value in others.items())


@pytest.mark.parametrize(("head", "options"), [(CodedLMHead, INT8), (ProjectiveLMHead, FLOATS)], ids=["int8", "floats"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_head_that_answers_otherwise_is_noticed(
    name: str, head: type[nn.Module], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recipe, "fit_to", refuse_to_fit)
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda self, hidden: forward(self, hidden).roll(1, -1))
    with pytest.raises(ProjclustError, match="answers otherwise"):
        compress_model(tiny_model(name), **options)


def test_a_fitted_table_that_is_read_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not before the fit: the table that stands for it then has one subspace.
    forward = ProjectiveEmbedding.forward
    monkeypatch.setattr(
        ProjectiveEmbedding, "forward", lambda self, ids: forward(self, ids) * (-1 if self.shape.k > 1 else 1)
    )
    model = tiny_model("bert")
    table = model.get_input_embeddings().weight
    with pytest.raises(ProjclustError, match="answers otherwise"):
        compress_model(model, **FLOATS)
    assert model.get_input_embeddings().weight is table


class TakesMore(hf.BertModel):
    def forward(self, input_ids: Tensor, pixels: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        raise AssertionError("never called")


def test_a_model_that_takes_more_than_tokens_is_not_judged() -> None:
    compress_model(TakesMore(tiny_model("bert").config), **FLOATS)


class ReadsTheWeight(hf.GPT2LMHeadModel):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.transformer(input_ids)[0]
        return (hidden @ self.transformer.wte.weight.t(),)


@pytest.mark.parametrize("options", [CODED, INT8, FLOATS, ADAPTIVE], ids=["bits", "int8", "floats", "adaptive"])
def test_a_model_that_multiplies_with_the_dense_weight_is_refused_before_the_fit(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recipe, "fit_to", refuse_to_fit)
    with pytest.raises(ProjclustError, match="ReadsTheWeight does not run with its table stored like this"):
        compress_model(ReadsTheWeight(tiny_model("gpt2").config), **options)
