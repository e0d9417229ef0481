"""The weights beside the table as integers in the file and floats in memory."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from damaging import rewrite, state
from safetensors.torch import load_file
from tiny_models import BUILDERS, ENCODER_DECODERS, VOCABULARY, inputs_for, logits, tiny_model
from torch import Tensor

from projclust import CheckpointError, ProjClustConfig, ProjclustError, compress_model
from projclust.checkpoints.load import load_checkpoint
from projclust.hf.body import body_weights, round_body
from projclust.jobs.expand import expand_checkpoint
from projclust.jobs.inspect import inspect_checkpoint
from projclust.jobs.options import ExpandOptions
from projclust.options import Body

CODED: dict[str, Any] = {"bits": 6.0, "metric": "none", "weights": "uniform"}


@pytest.fixture(autouse=True)
def _small_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have small weights only."""
    monkeypatch.setattr("projclust.hf.body._LEAST", 64)


def compressed(name: str, body: str, **how: Any) -> hf.PreTrainedModel:
    return compress_model(tiny_model(name), body=body, **(how or CODED))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("body", Body)
@pytest.mark.parametrize("name", BUILDERS)
def test_saved_loaded_and_saved_again_to_the_same_bytes(name: str, body: str, tmp_path: Path) -> None:
    model = compressed(name, body)
    model.save_pretrained(tmp_path / "first")
    stored = load_file(tmp_path / "first" / "model.safetensors")
    packed = [key for key in body_weights(model, Body(body)) if key in stored]
    assert len(packed) >= 5
    assert {stored[key].dtype for key in packed} == {torch.uint8}
    again, info = type(model).from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(again, name), logits(model, name))
    again.save_pretrained(tmp_path / "second")
    assert weights(tmp_path / "second") == weights(tmp_path / "first")


def test_rounding_is_near_the_weights_and_counted(tmp_path: Path) -> None:
    dense = tiny_model("bert")
    model = compressed("bert", "int8")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, own in body_weights(model, Body.INT8).items():
        exact = dense.get_parameter(name)
        assert 0 < float((own.weight - exact).detach().norm() / exact.norm()) < 0.02
        if name in stored:
            assert stored[name].shape == (len(exact), exact[0].numel() + 2)
    report = inspect_checkpoint(str(tmp_path))
    assert report.how is not None
    packed = [tensor.nbytes for name, tensor in stored.items() if name in body_weights(model, Body.INT8)]
    assert (report.how.body, report.how.body_bytes_stored) == ("int8", sum(packed))


def test_positions_and_output_layers_keep_eight_bits(tmp_path: Path) -> None:
    compressed("llama-untied", "int4").save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["lm_head.weight"].shape == (VOCABULARY, 16 + 2)
    assert stored["model.layers.0.mlp.up_proj.weight"].shape == (24, 16 // 2 + 2)
    compressed("bert", "int4").save_pretrained(tmp_path / "bert")
    stored = load_file(tmp_path / "bert" / "model.safetensors")
    assert stored["bert.embeddings.position_embeddings.weight"].shape == (40, 16 + 2)


@pytest.mark.parametrize("how", [{"k": 3, "j": 5}, {"k": 3, "j": 5, "codes": "int8"}, {"method": "svd", "j": 4}])
def test_any_table_goes_with_it(how: dict[str, Any], tmp_path: Path) -> None:
    model = compressed("bert", "int8", **how)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, "bert"), logits(model, "bert"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_in_memory_saves_the_same_codes(dtype: torch.dtype, tmp_path: Path) -> None:
    model = compressed("bert", "int4")
    model.save_pretrained(tmp_path / "first")
    narrow = type(model).from_pretrained(tmp_path / "first", dtype=dtype)
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
    narrow.save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("first", "second"))
    packed = [key for key, tensor in first.items() if tensor.dtype == torch.uint8]
    assert all(torch.equal(first[key], second[key]) for key in packed)


def test_weights_that_are_kept_in_float32_are(tmp_path: Path) -> None:
    compressed("t5", "int8").save_pretrained(tmp_path)
    narrow = hf.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    layer: Any = narrow.encoder.block[0].layer[-1].DenseReluDense
    assert (layer.wo.weight.dtype, layer.wi.weight.dtype) == (torch.float32, torch.float16)


def test_other_classes_and_new_heads_load(tmp_path: Path) -> None:
    compressed("bert", "int8").save_pretrained(tmp_path)
    bare = hf.AutoModel.from_pretrained(tmp_path)
    full = hf.BertForMaskedLM.from_pretrained(tmp_path)
    name = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(bare.get_parameter(name), full.bert.get_parameter(name))
    classifier = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=40)
    assert 0.01 < float(classifier.classifier.weight.std()) < 0.03  # as transformers starts it
    classifier.save_pretrained(tmp_path / "classifier")
    other = hf.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "classifier", num_labels=3, ignore_mismatched_sizes=True
    )
    assert other.classifier.weight.shape == (3, 16)
    assert 0.01 < float(other.classifier.weight.std()) < 0.03


def test_trained_weights_are_rounded_again_with_a_word(tmp_path: Path) -> None:
    model = compressed("bert", "int4")
    model.save_pretrained(tmp_path / "first")
    again = type(model).from_pretrained(tmp_path / "first")
    again(**inputs_for("bert"), labels=inputs_for("bert")["input_ids"]).loss.backward()
    torch.optim.SGD(again.parameters(), lr=1.0).step()
    with pytest.warns(UserWarning, match="changed since they were rounded to int4"):
        again.save_pretrained(tmp_path / "trained")
    assert len(weights(tmp_path / "trained")) == len(weights(tmp_path / "first"))
    rounded = type(model).from_pretrained(tmp_path / "trained")
    name = "bert.encoder.layer.0.output.dense.weight"
    trained, before = again.get_parameter(name), model.get_parameter(name)
    assert (rounded.get_parameter(name) - trained).norm() < 0.15 * trained.norm()
    assert not torch.equal(rounded.get_parameter(name), before)
    again.config.quantization_config.body = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.save_pretrained(tmp_path / "floats")
    assert torch.equal(type(model).from_pretrained(tmp_path / "floats").get_parameter(name), trained)


def test_adapters_train_beside_it(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    compressed("bert", "int4").save_pretrained(tmp_path / "base")
    base = hf.BertForMaskedLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False))
    expected = logits(adapted.eval(), "bert")
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(hf.BertForMaskedLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again.eval(), "bert"), expected)
    merged: Any = adapted.merge_and_unload()
    with pytest.warns(UserWarning, match="changed since"):
        merged.save_pretrained(tmp_path / "merged")
    assert len(weights(tmp_path / "merged")) == len(weights(tmp_path / "base"))


def test_expanded_it_is_a_stock_model(tmp_path: Path) -> None:
    model = compressed("bert", "int8")
    model.save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "vocab.txt").write_text("".join(f"w{i}\n" for i in range(VOCABULARY)))
    expand_checkpoint(ExpandOptions(str(tmp_path / "small"), str(tmp_path / "dense")))
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert torch.allclose(
        logits(hf.BertForMaskedLM.from_pretrained(tmp_path / "dense"), "bert"), logits(model, "bert"), atol=1e-5
    )


def test_a_dense_model_is_rounded_while_it_is_loaded(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    model = hf.BertForMaskedLM.from_pretrained(
        tmp_path / "dense", quantization_config=ProjClustConfig(body="int8", **CODED)
    )
    model.save_pretrained(tmp_path / "first")
    compressed("bert", "int8").save_pretrained(tmp_path / "second")
    assert weights(tmp_path / "first") == weights(tmp_path / "second")


@pytest.mark.parametrize("name", ["gpt2", *ENCODER_DECODERS])
def test_offloaded_weights_are_floats_wherever_they_are(name: str, tmp_path: Path) -> None:
    model = compressed(name, "int8")
    model.save_pretrained(tmp_path / "small")
    top = sorted({key.split(".")[0] for key in model.state_dict()})
    places = dict.fromkeys(top, "cpu") | {top[-1]: "disk"}
    again = type(model).from_pretrained(tmp_path / "small", device_map=places, offload_folder=tmp_path / "disk")
    assert torch.allclose(logits(again, name), logits(model, name), atol=1e-6)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "again"), name), logits(model, name))


def halved(tensor: Tensor) -> Tensor:
    return tensor[:, : tensor.shape[1] // 2].contiguous()


NAME = "bert.encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize("damage", [halved, lambda tensor: tensor.to(torch.int8), lambda tensor: tensor[0].clone()])
def test_rows_of_another_width_or_dtype_are_refused_by_name(damage: Any, tmp_path: Path) -> None:
    compressed("bert", "int8").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({NAME: damage(tensors[NAME])}))
    for read in (hf.BertForMaskedLM.from_pretrained, load_checkpoint, lambda folder: inspect_checkpoint(str(folder))):
        with pytest.raises(CheckpointError, match=f"{NAME} is"):
            read(tmp_path)


def test_a_body_that_config_does_not_name_is_refused(tmp_path: Path) -> None:
    compressed("bert", "int8").save_pretrained(tmp_path)
    state(tmp_path, body="int2")
    with pytest.raises(CheckpointError, match="body='int2', not one of int8, int4"):
        hf.BertForMaskedLM.from_pretrained(tmp_path)
    state(tmp_path, body=None)
    with pytest.raises(CheckpointError, match="another shape than config.json asks for"):
        load_checkpoint(tmp_path)


def test_weights_that_cannot_be_rounded_are_refused_before_anything_is_changed() -> None:
    model = tiny_model("bert")
    broken: Any = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        broken[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        compress_model(model, body="int8", **CODED)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)


def test_a_weight_at_the_edge_of_its_range_is_refused_before_any_is_rounded() -> None:
    config = hf.BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    model: Any = hf.BertModel(config).half()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] = 65504
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ProjclustError, match=r"layer.1.output.dense.weight has entries of 65504, .* float16's range"):
        round_body(model, Body.INT8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
