"""LoRA and rows of single tokens on compressed tables: what they give beside a dense twin, trained, saved and loaded."""

import copy
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, compressed_model, inputs_for, logits
from torch import Tensor, nn

from projclust import ProjclustError
from projclust.tables import CompressedTable

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

# The embedding, the output layer and another layer of each.
LAYERS = {
    "gpt2": ("wte", "lm_head", "c_attn"),
    "bert": ("word_embeddings", "decoder", "query"),
    "distilbert": ("word_embeddings", "vocab_projector", "q_lin"),
    "gemma3": ("embed_tokens", "lm_head", "q_proj"),
    "llama-untied": ("embed_tokens", "lm_head", "q_proj"),
    "t5": ("encoder.embed_tokens", "lm_head", "q"),
}
WAYS = ("equal", "adaptive affine", "auto", "int8")
TOKENS = [84, 3, 12]  # two of them in `inputs_for`


@cache
def _made(name: str, how: str) -> hf.PreTrainedModel:
    return compressed_model(name, how)


def fresh(name: str, how: str) -> Any:
    """A compressed model that nothing was done to."""
    return copy.deepcopy(_made(name, how))


def lora(targets: Any = None, **more: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": targets, **more})


def adapted(name: str, how: str, config: Any) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(fresh(name, how), config).eval()


def trained(model: Any, name: str, steps: int = 8) -> Any:
    """The model after steps that lower its loss and change nothing but the adapter's."""
    inputs = inputs_for(name)
    before = {key: part.detach().clone() for key, part in model.state_dict().items()}
    optimizer = torch.optim.Adam([part for part in model.parameters() if part.requires_grad], lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {key for key, part in model.state_dict().items() if not torch.equal(part, before[key])}
    assert changed
    assert all("lora_" in key or "trainable_tokens_delta" in key for key in changed), changed
    return model


def loaded(base: Any, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(base, folder).eval()


def assert_as_saved(model: Any, name: str, how: str, folder: Path) -> None:
    """What holds of every adapter: it is small, loads again, can be set aside, taken off, and is not merged into codes."""
    given, plain = logits(model, name), logits(fresh(name, how), name)
    assert not torch.allclose(given, plain, atol=1e-3)
    model.save_pretrained(folder)
    dense = {
        f"base_model.model.{key}.base_layer.weight" for key in ("lm_head",) if "untied" in name
    }  # peft saves those
    saved = set(load_file(folder / "adapter_model.safetensors")) - dense
    assert all("lora_" in key or "trainable_tokens_delta" in key for key in saved), saved
    assert torch.equal(logits(loaded(fresh(name, how), folder), name), given)
    with model.disable_adapter():
        assert torch.equal(logits(model, name), plain)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ProjclustError, match=r"cannot be merged.*dequantize\(\)") as caught:
            merge()
        assert "\n" not in str(caught.value)
    assert torch.equal(logits(model, name), given)
    with pytest.raises(ProjclustError, match=r"unload\(\)"):
        model.dequantize()
    base = model.unload()
    assert isinstance(base.get_input_embeddings(), CompressedTable)
    assert torch.equal(logits(base, name), plain)
    assert torch.allclose(logits(base.dequantize(), name), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "which", "how"),
    [
        *(("gpt2", which, how) for which in ([0], [1], [0, 1, 2]) for how in WAYS),
        *((name, [0, 1], how) for name in LAYERS if name != "gpt2" for how in ("equal", "auto")),
    ],
)
def test_lora(name: str, which: list[int], how: str, tmp_path: Path) -> None:
    model = adapted(name, how, lora([LAYERS[name][number] for number in which], lora_dropout=0.1))
    assert torch.equal(logits(model, name), logits(fresh(name, how), name))
    given = logits(trained(model, name), name)
    model.save_pretrained(tmp_path)
    dense = loaded(fresh(name, how).dequantize(), tmp_path)
    assert torch.allclose(logits(dense, name), given, atol=1e-4)
    assert_as_saved(model, name, how, tmp_path)


@pytest.mark.parametrize(
    ("name", "given", "how"),
    [
        *(("gpt2", given, how) for given in (TOKENS, {"wte": TOKENS}, {"lm_head": TOKENS}) for how in WAYS),
        *((name, TOKENS, how) for name in ("bert", "distilbert", "gemma3", "t5") for how in ("equal", "auto")),
        *(("llama-untied", given, "auto") for given in (TOKENS, {"embed_tokens": TOKENS, "lm_head": [5]})),
    ],
)
def test_rows_of_tokens(name: str, given: Any, how: str, tmp_path: Path) -> None:
    model = adapted(name, how, lora([LAYERS[name][2]], trainable_token_indices=given))
    plain = fresh(name, how)
    assert torch.allclose(logits(model, name), logits(plain, name), atol=1e-5)
    rows = dict(model.named_parameters())
    moved = [part for key, part in rows.items() if "trainable_tokens_delta" in key]
    assert sum(map(len, moved)) == (len(TOKENS) if len(given) != 2 else len(TOKENS) + 1)  # a tied head has none
    trained(model, name)
    with torch.no_grad():
        for part in moved:
            part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path)
    dense = loaded(fresh(name, how).dequantize(), tmp_path)
    if "bert" in name:  # until then peft leaves out the bias of a dense head
        dense = dense.merge_and_unload()
    assert torch.allclose(logits(dense, name), logits(model, name), atol=1e-4)
    assert_as_saved(model, name, how, tmp_path)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_only_these_rows_are_replaced(how: str) -> None:
    plain = fresh("gemma3", how)  # whose embedding is scaled
    ids = torch.arange(VOCABULARY).view(4, -1)
    before = plain.get_input_embeddings()(ids)
    model = peft.get_peft_model(plain, lora(["q_proj"], trainable_token_indices=TOKENS))
    embedding = model.get_input_embeddings()
    assert torch.allclose(embedding(ids), before, atol=1e-6)
    with torch.no_grad():
        embedding.token_adapter.trainable_tokens_delta["default"].zero_()
    found = embedding(ids)
    assert (found == 0).all(-1).flatten().nonzero().flatten().tolist() == sorted(TOKENS)
    kept = (found != 0).any(-1)
    assert torch.equal(found[kept], before[kept])


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_lora_and_rows_of_tokens_do_not_share_a_layer(how: str) -> None:
    with pytest.raises(TypeError, match="trainable_token_indices cannot be applied"):  # as of a dense model
        adapted("gpt2", how, lora(["wte"], trainable_token_indices=TOKENS))


@pytest.mark.parametrize("how", ["equal", "auto"])
@pytest.mark.parametrize("alone", [False, True])
def test_rows_of_tokens_that_were_added(alone: bool, how: str, tmp_path: Path) -> None:
    fresh("gpt2", how).save_pretrained(tmp_path / "base")

    def base() -> Any:
        model = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(VOCABULARY + 2)
        return model.eval()

    tokens = [3, VOCABULARY + 1]
    config = lora(["c_attn"], trainable_token_indices=tokens)
    if alone:
        config = peft.TrainableTokensConfig(target_modules=["wte"], token_indices=tokens)
    model, ids = peft.get_peft_model(base(), config), torch.tensor([[3, VOCABULARY + 1, VOCABULARY, 4]])
    before = model(ids).logits.detach()
    optimizer = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=1.0)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    given = model(ids).logits.detach()
    assert not torch.allclose(given[..., -1], before[..., -1], atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.allclose(loaded(base(), tmp_path / "adapter")(ids).logits, given, atol=1e-5)
    with pytest.raises(ProjclustError, match="cannot be merged"):
        model.merge_and_unload()
    again = copy.deepcopy(model.unload())
    assert torch.allclose(again(ids).logits, before, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        ("gpt2", "auto", {"target_modules": ["wte", "lm_head"]}),
        ("bert", "equal", {"target_modules": ["query"], "trainable_token_indices": TOKENS}),
    ],
)
def test_adapters_load_in_a_new_process(name: str, how: str, options: dict[str, Any], tmp_path: Path) -> None:
    fresh(name, how).save_pretrained(tmp_path / "base")
    kind = hf.BertForMaskedLM if name == "bert" else hf.GPT2LMHeadModel
    base = kind.from_pretrained(tmp_path / "base")
    model = trained(peft.get_peft_model(base, peft.LoraConfig(r=2, **options)).eval(), name)
    model.save_pretrained(tmp_path / "adapter")
    save_file(inputs_for(name), tmp_path / "inputs")
    code = f"""
import peft, projclust, safetensors.torch as files, torch
from transformers import {kind.__name__} as kind
model = peft.PeftModel.from_pretrained(kind.from_pretrained("base"), "adapter").eval()
with torch.no_grad():
    files.save_file({{"logits": model(**files.load_file("inputs")).logits}}, "logits")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert torch.allclose(load_file(tmp_path / "logits")["logits"], logits(model, name), atol=1e-6)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_what_was_trained_on_the_compressed_table_is_merged_into_the_dense_one(how: str, tmp_path: Path) -> None:
    model = trained(adapted("gpt2", how, lora(["wte", "lm_head", "c_attn"])), "gpt2")
    model.save_pretrained(tmp_path / "adapter")
    dense = fresh("gpt2", how).dequantize()
    dense.lm_head.weight = nn.Parameter(dense.lm_head.weight.detach().clone())  # as peft says: each gets its own part
    dense.config.tie_word_embeddings = False
    merged = loaded(dense, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    for one in (merged, again):
        assert torch.allclose(logits(one, "gpt2"), logits(model, "gpt2"), atol=1e-4)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_several_adapters(how: str) -> None:
    model = adapted("gpt2", how, lora(["wte", "lm_head"], init_lora_weights=False))
    model.add_adapter("other", lora(["wte", "c_attn"], init_lora_weights=False))
    first = logits(model, "gpt2")
    model.set_adapter("other")
    second = logits(model, "gpt2")
    assert not torch.allclose(first, second, atol=1e-3)
    with torch.no_grad():
        mixed = model(**inputs_for("gpt2"), adapter_names=["default", "other"]).logits
    assert torch.allclose(mixed, torch.stack([first[0], second[1]]), atol=1e-5)
    trained(model, "gpt2")
    model.set_adapter("default")
    assert torch.equal(logits(model, "gpt2"), first)
    model.delete_adapter("other")
    assert torch.equal(logits(model, "gpt2"), first)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_tied_lora_learns_as_one(how: str) -> None:
    try:
        config = lora(["wte", "lm_head"], ensure_weight_tying=True)
    except TypeError:
        pytest.skip("an option that this peft does not have")
    model = trained(adapted("gpt2", how, config), "gpt2")
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    assert torch.equal(first.lora_embedding_A["default"].T, last.lora_B["default"].weight)
    assert torch.equal(first.lora_embedding_B["default"].T, last.lora_A["default"].weight)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_padding_does_not_learn(how: str) -> None:
    embedding = adapted("bert", how, lora(["word_embeddings"])).get_input_embeddings()
    embedding(torch.tensor([[5, 0, 7]])).sum().backward()
    gradient = embedding.lora_embedding_A["default"].grad
    assert gradient.abs().sum(0).nonzero().flatten().tolist() == [5, 7]


def test_all_linear_leaves_the_head_out() -> None:
    model = adapted("gpt2", "auto", lora("all-linear"))
    assert isinstance(model.get_output_embeddings(), CompressedTable)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        *({"init_lora_weights": start} for start in ("pissa", "olora", "eva", "loftq", "corda")),
        {"target_modules": [], "target_parameters": ["wte.weight"]},
    ],
)
def test_what_reads_a_dense_weight_is_refused_in_one_line(options: dict[str, Any]) -> None:
    config = lora(["wte"])
    for option, value in options.items():
        setattr(config, option, value)
    second = adapted("gpt2", "auto", lora(["lm_head", "wte"]))
    tries = [lambda: peft.get_peft_model(fresh("gpt2", "equal"), config)]
    tries += [] if "target_parameters" in options else [lambda: second.add_adapter("second", config)]
    for attempt in tries:
        with pytest.raises(ProjclustError, match=r"only plain LoRA.*dequantize\(\)") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["equal", "auto"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("name", "which"), [("qwen3", None), ("gemma3", [0, 1]), ("llama-untied", [2]), ("gemma3", [2])]
)
def test_gradients_are_those_without_checkpoints(name: str, which: list[int] | None, reentrant: bool, how: str) -> None:
    names = LAYERS.get(name, ("embed_tokens", "lm_head", "q_proj"))
    options = {"trainable_token_indices": TOKENS} if which is None else {}
    base = peft.prepare_model_for_kbit_training(fresh(name, how).to(torch.bfloat16))
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    base.enable_input_require_grads()
    torch.manual_seed(0)
    model = peft.get_peft_model(
        base, lora([names[number] for number in which or [2]], init_lora_weights=False, **options)
    )
    inputs = inputs_for(name)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        learn = [part for part in model.parameters() if part.requires_grad]
        return [part.grad.clone() for part in learn]

    found = gradients()
    model.gradient_checkpointing_disable()
    for one, other in zip(found, gradients(), strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, atol=1e-6)
    assert all(gradient.abs().sum() > 0 for gradient in found)


@pytest.mark.parametrize("options", [{"target_modules": ["wte"]}, {"trainable_token_indices": TOKENS}])
def test_half_precision_autocast_and_no_needless_warning(options: dict[str, Any]) -> None:
    model = adapted("gpt2", "auto", lora(**{"targets": ["c_attn"], **options}))
    half = peft.get_peft_model(fresh("gpt2", "auto").to(torch.bfloat16), lora(**{"targets": ["c_attn"], **options}))
    assert logits(half, "gpt2").dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that the embedding stays as it is
        model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs_for("gpt2")).logits.float().sum().backward()
    assert all(part.grad is not None for part in model.parameters() if part.requires_grad)
