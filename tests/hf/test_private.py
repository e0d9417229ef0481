"""Each name of transformers and accelerate that is not public is there and means what projclust takes it to mean."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module
from damaging import rewrite, state
from safetensors.torch import load_file
from tiny_models import compressed_model, tiny_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from transformers.quantizers.base import HfQuantizer

from projclust import compress_model
from projclust.coding.integers import pack_rows
from projclust.hf import private
from projclust.hf.quantizer import ProjClustHfQuantizer
from projclust.hf.sensitivity import measuring
from projclust.options import Codes

HEAD, TABLE = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"


def test_ties_are_found_by_name() -> None:
    model = tiny_model("bert")
    assert private.tied_weights(model)[HEAD] == TABLE
    assert private.tied_weights(tiny_model("llama-untied")) == {}
    assert hf.BertForMaskedLM._tied_weights_keys[HEAD] == TABLE
    assert model.get_expanded_tied_weights_keys()[HEAD] == TABLE


def test_what_is_tied_is_what_the_table_on_the_instance_says() -> None:
    model = tiny_model("bert")
    private.rewrite_ties(model, lambda ties: {key: value for key, value in ties.items() if key != HEAD})
    assert HEAD not in model.get_expanded_tied_weights_keys(), "the part's own table"
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.tie_weights()
    assert head.weight is not table.weight
    private.restore_ties(model)
    model.tie_weights()
    assert head.weight is table.weight
    assert private.tied_weights(model) == private.tied_weights(tiny_model("bert"))
    assert not {"_tied_weights_keys", "_adjust_bias"} & set(vars(model))


def test_tying_stretches_the_bias_unless_the_layer_is_compressed() -> None:
    private.keep_biases()
    private.keep_biases()  # a second call changes nothing
    for compressed in (False, True):
        model = compressed_model("bert", "adaptive") if compressed else tiny_model("bert")
        if not compressed:
            model.get_input_embeddings().weight = nn.Parameter(torch.zeros(130, 16))
        assert len(model.get_input_embeddings().weight) != 120
        model.tie_weights()
        assert len(model.get_output_embeddings().bias) == (120 if compressed else 130)


def test_transformers_asks_no_encoder_whether_it_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 20}
    decoder = hf.BertConfig(**shape, is_decoder=True, add_cross_attention=True)
    own = {"quant_method": "projclust", "version": 1}
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(hf.BertConfig(**shape), decoder)
    assert not hasattr(config, "quantization_config")
    config.encoder.quantization_config = own
    assert config.quantization_config == own
    config.encoder.quantization_config = {**own, "quant_method": "gptq"}
    assert not hasattr(config, "quantization_config")
    # As it is without us.
    monkeypatch.delattr(hf.EncoderDecoderConfig, "quantization_config")
    config.encoder.quantization_config = own
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    assert found is None
    private.heed_compressed_encoders()
    private.heed_compressed_encoders()  # a second call changes nothing
    assert config.quantization_config == own


def test_tensors_that_were_read_are_marked(tmp_path: Path) -> None:
    model = tiny_model("bert")
    assert not any(private.was_read(parameter) for parameter in tiny_model("bert").parameters())
    model.save_pretrained(tmp_path)
    assert all(private.was_read(parameter) for parameter in hf.BertForMaskedLM.from_pretrained(tmp_path).parameters())


def test_modules_that_accelerate_placed_are_known() -> None:
    module = nn.Linear(2, 2)
    assert not private.is_dispatched(module)
    add_hook_to_module(module, ModelHook())
    assert private.is_dispatched(module)


@pytest.mark.parametrize("kind", [hf.AutoModel, hf.BertForMaskedLM])
def test_models_are_built_without_weights(kind: type) -> None:
    config = tiny_model("bert").config
    with torch.device("meta"):
        model = private.without_weights(kind, config)
    assert isinstance(model, hf.PreTrainedModel)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_scaler_of_an_accelerator_is_renewed() -> None:
    accelerator = Accelerator(cpu=True)
    private.renew_scaler(accelerator)
    assert accelerator.scaler is None
    accelerator.scaler = old = torch.amp.GradScaler("cpu")
    private.renew_scaler(accelerator)
    assert isinstance(accelerator.scaler, torch.amp.GradScaler)
    assert accelerator.scaler is not old


def shifted(model: hf.PreTrainedModel) -> dict[str, Tensor]:
    return {name: t + 1 if t.is_floating_point() else t for name, t in model.state_dict().items()}


def bases(folder: Path) -> Tensor:
    return load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.bases"]


@pytest.mark.parametrize("by_place", [False, True])
def test_the_state_that_a_caller_hands_over_is_saved(by_place: bool, tmp_path: Path) -> None:
    assert private.state_dict_to_save() is None, "nobody is saving"
    model = compress_model(tiny_model("bert"), k=3, j=5)
    state = shifted(model)
    if by_place:
        model.save_pretrained(tmp_path, True, state)
    else:
        model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(bases(tmp_path), model.get_input_embeddings().bases + 1)


def test_transformers_itself_forgets_that_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # When this fails, `state_dict_to_save` is not needed any more.
    monkeypatch.setattr(ProjClustHfQuantizer, "get_state_dict_and_metadata", HfQuantizer.get_state_dict_and_metadata)
    model = compress_model(tiny_model("bert"), k=3, j=5)
    model.save_pretrained(tmp_path, state_dict=shifted(model))
    assert torch.equal(bases(tmp_path), model.get_input_embeddings().bases)


def save_sharded(rank: int, folders: list[str], port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for folder in folders:
        model = hf.AutoModelForMaskedLM.from_pretrained(folder)
        fully_shard(model)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        model.save_pretrained(f"{folder}/again", state_dict=state, is_main_process=rank == 0)
    dist.destroy_process_group()


def test_a_model_sharded_among_processes_is_saved_whole(tmp_path: Path) -> None:
    folders = [str(tmp_path / codes) for codes in ("float32", "float16")]
    for folder, codes in zip(folders, (None, "float16"), strict=True):
        compress_model(tiny_model("bert"), k=3, j=5, codes=codes).save_pretrained(folder)
    spawn(save_sharded, (folders, 20000 + os.getpid() % 20000), nprocs=2)
    for folder in folders:
        before, after = (load_file(f"{place}/model.safetensors") for place in (folder, f"{folder}/again"))
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor)


def test_weights_that_transformers_stores_in_another_layout_are_known() -> None:
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    experts = {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 8}
    model = hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**shape, **experts, num_key_value_heads=1))
    merged = [name for name, _ in model.named_parameters() if private.is_converted(model)(name)]
    assert merged == ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"]
    assert not any(map(private.is_converted(tiny_model("bert")), tiny_model("bert").state_dict()))


def test_packed_rows_are_unpacked_while_they_are_read_and_never_while_they_are_saved(tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    model = compress_model(tiny_model("bert"), k=3, j=5)
    model.save_pretrained(tmp_path)
    state(tmp_path, body="int8")
    weight = model.get_parameter(name).detach()
    rewrite(tmp_path, lambda tensors: tensors.update({name: pack_rows(weight, Codes.INT8)}))
    again = hf.BertForMaskedLM.from_pretrained(tmp_path)
    assert 0 < float((again.get_parameter(name) - weight).detach().norm() / weight.norm()) < 0.02
    assert again.get_parameter(name).requires_grad
    quantizer: Any = again.hf_quantizer
    assert list(quantizer.body_scales) == [name]
    conversions = getattr(again, "_weight_conversions")  # noqa: B009, which mypy does not know
    assert not any("weight$" in one.source_patterns for one in conversions)
    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors")[name].shape[0] == len(weight)


def test_a_model_that_scales_its_own_weights_comes_out_as_it_was() -> None:
    torch.manual_seed(0)
    config = hf.RwkvConfig(
        vocab_size=120, hidden_size=16, num_hidden_layers=4, rescale_every=2, attention_hidden_size=16
    )
    model = hf.RwkvForCausalLM(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.tensor([[3, 4]]))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == 4
    with measuring(model):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    compress_model(model, k=2, j=5)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in changed)
