"""peft on compressed tables: trained, merged, saved and loaded with the same outputs, or one line that says what to do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import VOCABULARY, compressed_model
from torch import Tensor

from projclust import ProjclustError
from projclust.tables import CompressedTable

peft = pytest.importorskip("peft")

IDS = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS).logits
    return found


def lora(**more: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, **more})


def trained(base: hf.PreTrainedModel, config: Any) -> tuple[Any, set[str]]:
    """An adapted model after a step, and the last names of what changed outside LoRA."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    model.train()(IDS, labels=IDS).loss.backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    return model, {name for name in changed if "lora" not in name}


@pytest.mark.parametrize(
    ("how", "modules"),
    [
        *((how, ["wte"]) for how in ("equal", "adaptive affine", "auto", "int8")),
        *((how, modules) for how in ("equal", "adaptive") for modules in (["lm_head"], ["wte", "lm_head"])),
    ],
)
def test_modules_to_save_learn_and_what_is_merged_loads_again(how: str, modules: list[str], tmp_path: Path) -> None:
    compressed_model("gpt2", how).save_pretrained(tmp_path / "base")
    base = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model, changed = trained(base, lora(modules_to_save=modules))
    for name in modules:
        assert any(f"{name}.modules_to_save" in parameter for parameter in changed), changed
    assert all("modules_to_save" in parameter for parameter in changed)
    expected = outputs(model)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(hf.GPT2LMHeadModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(outputs(again), expected, atol=1e-5)
    merged = model.merge_and_unload()
    assert torch.allclose(outputs(merged), expected, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    assert isinstance(loaded.get_input_embeddings(), CompressedTable)
    assert torch.allclose(outputs(loaded), expected, atol=1e-5)


@pytest.mark.parametrize("how", ["equal", "adaptive", "auto"])
def test_prompts_are_tuned(how: str, tmp_path: Path) -> None:
    compressed_model("gpt2", how).save_pretrained(tmp_path / "base")
    base = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model, changed = trained(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert changed == {"prompt_encoder.default.embedding.weight"}
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(hf.GPT2LMHeadModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(outputs(again), outputs(model), atol=1e-6)


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("equal", {"target_modules": ["wte"], "use_dora": True}, "only plain LoRA adapts"),
        ("auto", {"target_modules": ["wte"], "use_dora": True}, "only plain LoRA adapts"),
        ("equal", {"target_modules": ["lm_head"], "init_lora_weights": "pissa"}, "only plain LoRA adapts"),
        ("auto", {"target_modules": ["lm_head"], "init_lora_weights": "olora"}, "only plain LoRA adapts"),
        ("auto", {"modules_to_save": ["lm_head"]}, "a coded output layer holds nothing"),
        ("equal", {"modules_to_save": ["wte", "lm_head"], "ensure_weight_tying": True}, "name either it or the output"),
    ],
)
def test_what_needs_a_dense_table_says_so_at_once_and_then_works(
    how: str, options: dict[str, Any], message: str
) -> None:
    try:
        config = lora(**options)
    except TypeError:
        pytest.skip("an option that this peft does not have")
    with pytest.raises(ProjclustError, match=message) as caught:
        peft.get_peft_model(compressed_model("gpt2", how), config)
    assert "dequantize()" in str(caught.value)
    assert "\n" not in str(caught.value)
    model, _ = trained(compressed_model("gpt2", how).dequantize(), lora(**options))
    assert outputs(model).isfinite().all()


def test_new_tokens_learn_beside_an_adapter(tmp_path: Path) -> None:
    base = compressed_model("gpt2", "auto")
    base.resize_token_embeddings(VOCABULARY + 2)
    model = peft.get_peft_model(base, lora(modules_to_save=["wte"]))
    model(torch.tensor([[5, VOCABULARY, VOCABULARY + 1]])).logits.square().sum().backward()
    assert model.get_input_embeddings().added.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("order", ["import peft, projclust", "import projclust, peft"])
def test_whatever_is_imported_first(order: str) -> None:
    code = f"""
{order}
import transformers, projclust.hf.quantizer, peft.utils.other
print(*[hasattr(kind, "__wrapped__") for kind in (
    peft.utils.other.ModulesToSaveWrapper.update, peft.tuners.lora.model.LoraModel._create_and_replace,
    peft.PeftModel._setup_prompt_encoder, peft.prepare_model_for_kbit_training)])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "True True True True\n", result.stderr
