"""What a model's own gradients say of its rows' errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny_models import BUILDERS, CAUSAL, ENCODER_DECODERS, VOCABULARY, WIDTH, logits, tiny_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from projclust import compress_model
from projclust.errors import ProjclustError
from projclust.hf import sensitivity
from projclust.hf.sensitivity import model_sensitivity, ridged_power, sensitivities
from projclust.hf.sequences import draw_sequences
from projclust.weights.own_text import OwnText

RIDGE = 0.03
TIED_GENERATIVE = {*CAUSAL, *ENCODER_DECODERS} - {"llama-untied"}


class LinearModel(PreTrainedModel):
    """Hidden states are the looked-up rows times a matrix: what the model notices of their errors is known."""

    config_class = PretrainedConfig
    generative = False

    def __init__(self, config: PretrainedConfig, table: Tensor, matrix: Tensor) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding.from_pretrained(table)
        self.head = nn.Linear(table.shape[1], len(table), bias=False)
        self.head.weight = self.embedding.weight
        self.matrix = nn.Parameter(matrix)
        self.seen: list[Tensor] = []

    @classmethod
    def can_generate(cls) -> bool:
        return cls.generative

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        assert attention_mask.shape == input_ids.shape
        self.seen.append(input_ids)
        hidden = self.embedding(input_ids)
        hidden *= 1  # some models change in place what they looked up
        hidden = hidden @ self.matrix
        return (self.head(hidden),) if self.generative else (hidden,)


class LinearLanguageModel(LinearModel):
    generative = True


def linear_model(kind: type[LinearModel] = LinearModel, **config: Any) -> LinearModel:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(50, 4, generator=generator) * torch.tensor([1.0, 2.0, 1.0, 0.5])
    return kind(PretrainedConfig(**config), table, torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0])))


RWKV: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "attention_hidden_size": WIDTH}
FSMT: dict[str, Any] = {
    "langs": ["en", "de"],
    "src_vocab_size": VOCABULARY,
    "tgt_vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "max_position_embeddings": 40,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
}


@pytest.mark.parametrize("kind", [hf.RwkvModel, hf.RwkvForCausalLM, hf.FSMTModel, hf.FSMTForConditionalGeneration])
def test_states_that_change_in_place_and_decoders_without_an_output_layer(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = hf.FSMTConfig(**FSMT) if "FSMT" in kind.__name__ else hf.RwkvConfig(vocab_size=VOCABULARY, **RWKV)
    model = kind(own).eval()
    assert torch.linalg.eigvalsh(model_sensitivity(model)).min() > 0
    compress_model(model, bits=6.0)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if "FSMT" in kind.__name__ else {})}
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs)[0], model(**inputs)[0], atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_class_has_a_sensitivity(name: str) -> None:
    model = tiny_model(name)
    found = model_sensitivity(model)
    assert found.shape == (WIDTH, WIDTH)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, found.T)
    values = torch.linalg.eigvalsh(found)
    power = 1 / 0.3 if name in TIED_GENERATIVE else 4
    assert float((values**power).min()) >= 0.99 * RIDGE
    assert float((values**power).mean()) == pytest.approx(1 + RIDGE)


@pytest.mark.parametrize("name", BUILDERS)
def test_logits_count_in_generative_models_with_a_tied_head(name: str) -> None:
    gradients, states = sensitivities(tiny_model(name))
    assert float(gradients.trace()) == pytest.approx(WIDTH)
    assert (states is not None) == (name in TIED_GENERATIVE)
    assert states is None or float(states.trace()) == pytest.approx(WIDTH)


def test_of_a_linear_model_it_is_the_matrix_times_its_transpose() -> None:
    gradients, states = sensitivities(linear_model())
    assert states is None
    # 16 + 4 + 1 + 0, scaled to 4.
    torch.testing.assert_close(gradients, torch.diag(torch.tensor([16.0, 4, 1, 0]).double() * 4 / 21), rtol=0, atol=0.1)
    assert float(gradients[3].abs().max()) == 0


def test_of_a_linear_language_model_the_states_are_the_rows_times_the_matrix() -> None:
    model = linear_model(LinearLanguageModel)
    gradients, states = sensitivities(model)
    assert states is not None
    hidden = (model.embedding.weight @ model.matrix).double().detach()
    expected = hidden.T @ hidden
    torch.testing.assert_close(states, expected * 4 / expected.trace(), rtol=0, atol=0.15)
    torch.testing.assert_close(model_sensitivity(model), ridged_power((gradients + states) / 2, 0.3))


def test_where_a_model_has_said_something_that_is_what_it_reads() -> None:
    model = linear_model(LinearLanguageModel)
    said = OwnText(torch.tensor([[3, 7, 7], [3, 9, 7]]), torch.full((50,), 1 / 50))
    _, states = sensitivities(model, own_text=said)
    assert states is not None
    assert [ids.tolist() for ids in model.seen] == [said.sequences.tolist()]
    hidden = (model.embedding.weight[said.sequences.flatten()] @ model.matrix).double().detach()
    expected = hidden.T @ hidden
    torch.testing.assert_close(states, expected * 4 / expected.trace(), rtol=1e-6, atol=1e-6)


def test_ridged_power_of_a_diagonal() -> None:
    expected = torch.diag((torch.tensor([3.0, 1.0, 0.0]).double() + RIDGE) ** 0.25)
    torch.testing.assert_close(ridged_power(torch.diag(torch.tensor([3.0, 1.0, 0.0]).double()), 0.25), expected)


def test_the_seed_decides() -> None:
    model = tiny_model("bert")
    first = model_sensitivity(model, seed=1)
    assert torch.equal(first, model_sensitivity(model, seed=1))
    assert not torch.equal(first, model_sensitivity(model, seed=2))


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_the_model_comes_out_unchanged(name: str, fails: bool, hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    expected = logits(model, name)
    head = model.get_output_embeddings()
    if hooked:
        add_hook_to_module(head, ModelHook())
    own = vars(head).get("forward")
    assert (own is not None) == hooked
    model.train()
    parts = list(model.modules())
    parts[-1].eval()
    trained, kept = list(model.parameters())[:2]
    trained.grad = torch.ones_like(trained)
    kept.requires_grad_(False)
    generator = torch.get_rng_state()
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    numbers = iter(range(1000))

    def draw(*given: Any) -> Tensor:
        if fails and next(numbers) == 10:
            raise KeyboardInterrupt
        return draw_sequences(*given)

    monkeypatch.setattr(sensitivity, "draw_sequences", draw)
    try:
        model_sensitivity(model)
    except KeyboardInterrupt:
        assert fails
    assert [part.training for part in parts] == [True] * (len(parts) - 1) + [False]
    assert [p.requires_grad for p in model.parameters()] == [p is not kept for p in model.parameters()]
    assert [p for p in model.parameters() if p.grad is not None] == [trained]
    assert torch.equal(trained.grad, torch.ones_like(trained))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
    assert not any(part._forward_hooks for part in parts)
    assert vars(head).get("forward") is own
    # An output layer that still gave no logits would show here.
    assert torch.equal(logits(model.eval(), name), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(dtype: torch.dtype) -> None:
    expected = model_sensitivity(tiny_model("gpt2"))
    model = tiny_model("gpt2").to(dtype)
    torch.testing.assert_close(model_sensitivity(model), expected, rtol=0, atol=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_sequences_are_drawn_by_frequency_between_the_special_tokens() -> None:
    model = linear_model(cls_token_id=1, eos_token_id=[2, 3], pad_token_id=4)
    frequencies = torch.zeros(50)
    frequencies[4], frequencies[10], frequencies[11] = 90, 9, 1
    model_sensitivity(model, frequencies)
    ids = torch.cat(model.seen)
    assert set(ids[:, 0].tolist()) == {1}
    assert set(ids[:, -1].tolist()) == {2}
    inner = ids[:, 1:-1]
    assert set(inner.unique().tolist()) == {10, 11}, "neither padding nor rows without occurrences"
    # Half of the time 9 to 1, half of the time 3 to 1.
    assert float((inner == 11).double().mean()) == pytest.approx((1 / 10 + 1 / 4) / 2, abs=0.02)


def test_short_positions_are_not_exceeded() -> None:
    model = linear_model(max_position_embeddings=10)
    model_sensitivity(model)
    assert {ids.shape[1] for ids in model.seen} == {5}


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_without_an_answer_is_refused(value: float) -> None:
    model = linear_model()
    with torch.no_grad():
        model.matrix.fill_(value)
    with pytest.raises(ProjclustError, match="zero or not finite"):
        model_sensitivity(model)


def test_a_model_that_takes_more_than_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    monkeypatch.setattr(type(model.base_model), "forward", lambda self, input_ids, attention_mask, pixels: None)
    with pytest.raises(ProjclustError, match="cannot be measured: .*pixels.* `sensitivity` none does without it"):
        model_sensitivity(model)


def test_counts_of_the_padding_alone_are_none() -> None:
    model = tiny_model("bert")
    counts = torch.zeros(model.get_input_embeddings().num_embeddings)
    counts[model.config.pad_token_id] = 3
    assert torch.equal(model_sensitivity(model, counts), model_sensitivity(model))


def test_a_compressed_model_is_refused() -> None:
    model = compress_model(tiny_model("bert"), k=2, j=4)
    with pytest.raises(ProjclustError, match="compressed already"):
        model_sensitivity(model)
