"""The rules of a checkpoint that is first-class in transformers, each with a test that fails without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from damaging import forget_digest
from safetensors.torch import load_file, save_file
from tiny_models import CODED, VOCABULARY, compressed_model, inputs_for, logits, tiny_model

import projclust
from projclust import (
    CheckpointError,
    ProjClustConfig,
    ProjclustError,
    ProjectiveEmbedding,
    ProjectiveLMHead,
    compress_model,
    unfreeze,
)
from projclust.shapes import CodedShape, FactoredShape
from projclust.tables import CodedEmbedding, CodedLMHead, CompressedTable
from projclust.tables.lookup import EmbeddingLookup

PREFIX = "bert.embeddings.word_embeddings."
CODED_FOLDERS = ["coded_folder", "int8_folder", "int4_folder"]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    # As where projclust is not installed: torch would call it otherwise.
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("folder", ["compressed_folder", "adaptive_folder", "coded_folder"])
def test_without_projclust_no_random_embedding_is_loaded(folder: str, request: pytest.FixtureRequest) -> None:
    # Rule 1: the coefficients are called weight, so that stock transformers stops at their shape.
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(request.getfixturevalue(folder))!r})"
    result = run_python(code)
    assert result.returncode != 0
    assert "size mismatch" in result.stderr.lower() or "mismatched" in result.stderr.lower()


@pytest.mark.parametrize(
    "order",
    ["import projclust, transformers", "import transformers.quantizers, projclust", "import projclust.hf.quantizer"],
)
def test_plain_from_pretrained_after_import_in_either_order(
    compressed_folder: Path, coded_folder: Path, order: str
) -> None:
    code = f"{order}; from transformers import AutoModel as A; "
    for folder in (compressed_folder, coded_folder):
        code += f"print(type(A.from_pretrained({str(folder)!r}).get_input_embeddings()).__name__); "
    result = run_python(code)
    assert result.stdout.split() == ["ProjectiveEmbedding", "CodedEmbedding"], result.stderr


def test_import_is_light() -> None:
    # Rule 10: neither torch nor transformers, which take seconds.
    result = run_python(
        "import sys, projclust; print([m for m in ('torch', 'transformers', 'typer') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr
    assert set(projclust.__all__) <= set(dir(projclust))
    assert all(hasattr(projclust, name) for name in projclust.__all__)


def test_names_of_modules_are_not_stored(compressed_folder: Path, coded_folder: Path) -> None:
    # Rule 2: the prefix differs between AutoModel and the class with a head.
    for folder in (compressed_folder, coded_folder):
        stored = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert "word_embeddings" not in json.dumps(stored)


def test_factors_take_the_old_weights_device_and_dtype() -> None:
    # Rule 2: on a model without data, nothing may be allocated.
    from projclust.hf.swap import swap_embedding

    with torch.device("meta"):
        model = hf.BertModel(hf.BertConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    embedding = swap_embedding(model.to(torch.bfloat16), FactoredShape(90, 16, 3, 5, True))
    assert {(t.device.type, t.dtype) for t in embedding.parameters()} == {("meta", torch.bfloat16)}
    assert embedding.clusters.is_meta
    with torch.device("meta"):
        model = hf.BertModel(hf.BertConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    coded = swap_embedding(model.to(torch.bfloat16), CodedShape(90, 16, 3, 5, 1, 4, True, 9, 10**15))
    assert isinstance(coded, CodedEmbedding)
    assert coded.dtype == torch.bfloat16
    assert {(buffer.device.type, buffer.dtype) for buffer in coded.buffers() if buffer.numel()} == {
        ("meta", torch.uint8)
    }


@pytest.mark.parametrize("folder", CODED_FOLDERS)
def test_a_tied_head_stores_nothing_and_reads_the_embeddings_codes(folder: str, request: pytest.FixtureRequest) -> None:
    # Rules 3 to 5: one copy, of bytes alone, and nothing of it in the tables of ties.
    path = request.getfixturevalue(folder)
    stored = load_file(path / "model.safetensors")
    model = hf.AutoModelForMaskedLM.from_pretrained(path)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, CodedEmbedding)
    assert isinstance(head, CodedLMHead)
    assert {name.removeprefix(PREFIX) for name in stored if name.startswith(PREFIX)} == set(embedding.shape.stored)
    assert not [name for name in stored if "decoder" in name.removeprefix(PREFIX) and "predictions" in name]
    assert head.primary is embedding
    assert head.bias is model.cls.predictions.bias  # bias ties stay untouched
    assert [name for name, buffer in head.named_buffers() if buffer.numel()] == []
    assert not any(key.endswith("decoder.weight") for key in model.all_tied_weights_keys)
    with torch.no_grad():
        embedding.gains.zero_()
        if embedding.shape.affine:
            embedding.mean_scales.zero_()
        assert not head(torch.randn(2, 16)).sub(head.bias).any()
    tables = sum(buffer.nbytes for name, buffer in model.named_buffers() if "word_embeddings" in name)
    assert tables == sum(tensor.nbytes for name, tensor in stored.items() if name.startswith(PREFIX))


def test_a_tied_head_is_saved_once_and_reads_the_embeddings_factors(compressed_folder: Path) -> None:
    # Rule 3.
    stored = load_file(compressed_folder / "model.safetensors")
    factors = [name for name in stored if name.rpartition(".")[2] in ("weight", "bases", "clusters")]
    assert {name for name in factors if stored[name].shape[0] == VOCABULARY} == {PREFIX + "clusters", PREFIX + "weight"}
    model = hf.AutoModelForMaskedLM.from_pretrained(compressed_folder)
    head = model.get_output_embeddings()
    assert isinstance(head, ProjectiveLMHead)
    assert head.bases is model.get_input_embeddings().bases
    assert head.bias is model.cls.predictions.bias  # bias ties stay untouched
    with torch.no_grad():
        model.get_input_embeddings().bases.zero_()
        assert not head(torch.randn(2, 16)).sub(head.bias).any()


def test_tying_tables_are_extended_on_the_instance_only() -> None:
    # Rule 3: the class's own table is shared by every dense model of the process.
    before = dict(hf.BertForMaskedLM._tied_weights_keys)
    model = compress_model(tiny_model("bert"), k=3, j=5)
    assert hf.BertForMaskedLM._tied_weights_keys == before
    assert model.all_tied_weights_keys["cls.predictions.decoder.bases"] == PREFIX + "bases"
    dense = model.dequantize()
    assert "_tied_weights_keys" not in dense.__dict__
    assert dense.all_tied_weights_keys == tiny_model("bert").all_tied_weights_keys


def test_cluster_ids_are_a_buffer_of_the_primary_only() -> None:
    # Rule 4.
    model = compress_model(tiny_model("bert"), k=3, j=5)
    assert [name for name, _ in model.named_buffers() if name.endswith("clusters")] == [PREFIX + "clusters"]
    assert not any("clusters" in key for key in model.all_tied_weights_keys)
    model.requires_grad_(True)
    assert model.get_input_embeddings().clusters.dtype == torch.uint8


def test_nothing_derived_or_constant_is_a_buffer() -> None:
    # Rule 5: buffers that are not saved come back as garbage.
    for name in ("bert", "gemma3", "bart"):
        embedding = compress_model(tiny_model(name), k=3, j=5).get_input_embeddings()
        assert [buffer for buffer, _ in embedding.named_buffers()] == ["clusters"]


@pytest.mark.parametrize("folder", ["compressed_folder", "adaptive_folder"])
def test_trainer_trains_saves_and_resumes(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    # Rule 6: Trainer refuses quantized models unless all three properties say yes.
    model = hf.AutoModelForSequenceClassification.from_pretrained(request.getfixturevalue(folder))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids = inputs_for("bert")["input_ids"]
    rows = [{"input_ids": ids[i % 2], "labels": i % 2} for i in range(16)]
    arguments = hf.TrainingArguments(
        str(tmp_path),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
    )
    hf.Trainer(model, arguments, train_dataset=rows).train()
    for factor in ("weight", "bases"):
        assert not torch.equal(before[PREFIX + factor], dict(model.named_parameters())[PREFIX + factor])
    reloaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert torch.equal(reloaded(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("unfrozen", [False, True])
@pytest.mark.parametrize("folder", CODED_FOLDERS)
def test_trainer_trains_saves_and_resumes_coded_models(
    folder: str, unfrozen: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # Rule 6.
    model = hf.AutoModelForSequenceClassification.from_pretrained(request.getfixturevalue(folder))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if unfrozen:
        unfreeze(model)
    ids = inputs_for("bert")["input_ids"]
    rows = [{"input_ids": ids[i % 2], "labels": i % 2} for i in range(16)]
    options = {
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-2,
        "use_cpu": True,
        "report_to": [],
        "save_steps": 2,
    }
    arguments = hf.TrainingArguments(str(tmp_path / "out"), max_steps=4, **options)
    hf.Trainer(model, arguments, train_dataset=rows).train()
    after = model.state_dict()
    assert set(after) == set(before)
    trained = {
        name.removeprefix(PREFIX) for name in after if not torch.equal(before[name], after[name]) and PREFIX in name
    }
    assert trained <= {"deviations", "gains", "means", "mean_scales", "decoder", "decoder_scales"}
    assert bool(trained) == unfrozen
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    reloaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-4")
    assert torch.allclose(reloaded(ids).logits, model.eval()(ids).logits, atol=1e-6)
    again = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-2")
    if unfrozen:
        unfreeze(again)
    arguments = hf.TrainingArguments(str(tmp_path / "out"), max_steps=5, **options)
    trainer = hf.Trainer(again, arguments, train_dataset=rows)
    assert trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")).global_step == 5


def test_half_and_float_are_allowed(
    compressed_folder: Path, adaptive_folder: Path, coded_folder: Path, int8_folder: Path
) -> None:
    # Rule 6: transformers forbids them on what it takes for a quantized model.
    folders = (compressed_folder, adaptive_folder, coded_folder, int8_folder)
    loaded = [hf.AutoModel.from_pretrained(folder) for folder in folders]
    for model in (*loaded, compress_model(tiny_model("bert"), k=3, j=5)):
        assert model.half().float().dtype == torch.float32


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace (or, with None, drop) factors in the weight file of a checkpoint without a digest."""
    forget_digest(folder)
    state = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        state.pop(PREFIX + name)
        if tensor is not None:
            state[PREFIX + name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("factor", ["weight", "bases", "clusters"])
def test_a_missing_factor_stops_the_load(compressed_folder: Path, factor: str) -> None:
    # Rule 7: it would stay uninitialised memory.
    rewrite(compressed_folder, **{factor: None})
    with pytest.raises(CheckpointError, match=f"{factor} is missing"):
        hf.AutoModel.from_pretrained(compressed_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(VOCABULARY, 6)}, r"weight has shape \[120, 6\], expected \[120, 5\]"),
        ({"bases": torch.zeros(3, 16, 5)}, "bases has shape"),
        ({"clusters": torch.zeros(VOCABULARY + 1, dtype=torch.uint8)}, "clusters has shape"),
        ({"clusters": torch.full((VOCABULARY,), 3, dtype=torch.uint8)}, r"cluster id lies outside 0 \.\. 2"),
        ({"weight": torch.full((VOCABULARY, 5), torch.nan)}, "weight has NaN"),
        ({"bases": torch.full((3, 5, 16), torch.inf)}, "bases has NaN or infinite"),
    ],
)
def test_damaged_factors_stop_the_load(compressed_folder: Path, changes: dict[str, torch.Tensor], message: str) -> None:
    rewrite(compressed_folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        hf.AutoModelForMaskedLM.from_pretrained(compressed_folder)


def test_damaged_factors_of_unequal_ranks_stop_the_load(adaptive_folder: Path) -> None:
    intact = load_file(adaptive_folder / "model.safetensors")
    weight, bases, clusters = (intact[PREFIX + name] for name in ("weight", "bases", "clusters"))
    moved = clusters.clone()
    moved[0] = (moved[0] + 1) % 3
    for changes, message in (
        ({"weight": weight[1:]}, rf"weight has shape \[{len(weight) - 1}\], expected \[{len(weight)}\]"),
        ({"bases": bases[1:]}, "bases has shape"),
        ({"clusters": moved}, "the clusters have other sizes than config.json states"),
        ({"clusters": torch.full_like(clusters, 3)}, r"cluster id lies outside 0 \.\. 2"),
        ({"weight": weight * torch.nan}, "weight has NaN"),
        ({"bases": None}, "bases is missing"),
    ):
        rewrite(adaptive_folder, **{"weight": weight, "bases": bases, "clusters": clusters, **changes})
        with pytest.raises(CheckpointError, match=message):
            hf.AutoModelForMaskedLM.from_pretrained(adaptive_folder)
        save_file(intact, adaptive_folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", sorted(CodedShape(9, 4, 2, 3, 1, 8, True, 4, 9).stored))
def test_a_missing_or_misshapen_part_of_a_coded_table_stops_the_load(int4_folder: Path, name: str) -> None:
    intact = load_file(int4_folder / "model.safetensors")
    for changes, message in (
        ({name: None}, f"{name} is missing|there is no such tensor"),
        ({name: torch.cat([intact[PREFIX + name], intact[PREFIX + name][:1]])}, f"{name} has shape"),
    ):
        rewrite(int4_folder, **changes)
        for kind in (hf.AutoModel, hf.AutoModelForMaskedLM):
            with pytest.raises(CheckpointError, match=message):
                kind.from_pretrained(int4_folder)
        save_file(intact, int4_folder / "model.safetensors", metadata={"format": "pt"})
    hf.AutoModel.from_pretrained(int4_folder)


def test_damaged_codes_stop_the_load(int8_folder: Path) -> None:
    intact = load_file(int8_folder / "model.safetensors")
    kinds, classes, gains = (intact[PREFIX + name] for name in ("kinds", "classes", "gains"))
    for changes, message in (
        ({"classes": torch.full_like(classes, 0x33)}, r"class id lies outside 0 \.\. 2"),
        ({"kinds": torch.full_like(kinds, 0xFF)}, "no code of kind 15|one deviation for each"),
        ({"kinds": kinds & 0x0F}, "not one deviation for each coordinate"),
        (
            {"kinds": torch.where(kinds == 0x88, 0x78, kinds.long()).to(torch.uint8)},
            "another length than their classes",
        ),
        ({"gains": torch.full_like(gains, 0xFF)}, "NaN or infinite"),
    ):
        rewrite(int8_folder, **changes)
        with pytest.raises(CheckpointError, match=message) as caught:
            hf.AutoModelForMaskedLM.from_pretrained(int8_folder)
        assert "\n" not in str(caught.value)
        save_file(intact, int8_folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("folder", ["compressed_folder", "coded_folder"])
def test_a_truncated_file_stops_the_load(folder: str, request: pytest.FixtureRequest) -> None:
    file = request.getfixturevalue(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        hf.AutoModel.from_pretrained(file.parent)


@pytest.mark.parametrize(("folder", "name"), [("compressed_folder", "clusters"), ("coded_folder", "kinds")])
def test_a_model_without_the_loaded_mark_is_refused(folder: str, name: str, request: pytest.FixtureRequest) -> None:
    # Rule 7, for loads whose files the headers' check does not see: a state dict handed over.
    path = request.getfixturevalue(folder)
    state = load_file(path / "model.safetensors")
    state.pop(PREFIX + name)
    config = hf.AutoConfig.from_pretrained(path)
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        hf.BertForMaskedLM.from_pretrained(None, config=config, state_dict=state)


@pytest.mark.parametrize(
    "options", [{"k": 1, "j": 15}, {"k": 1, "j": 15, "codes": "int8"}, {"bits": 6.0, "metric": "none"}]
)
@pytest.mark.parametrize("name", ["gemma3", "bart"])
def test_scaled_embeddings_keep_their_scale(name: str, options: dict[str, Any]) -> None:
    # Rule 8.
    dense = tiny_model(name).get_input_embeddings()
    model = compress_model(tiny_model(name), **options)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, EmbeddingLookup)
    assert isinstance(embedding, ProjectiveEmbedding | CodedEmbedding)
    assert embedding.scale == pytest.approx(4.0)  # sqrt(16)
    ids = torch.arange(VOCABULARY)
    assert torch.allclose(embedding(ids), embedding.dense_weight() * 4.0, atol=1e-6)
    assert (embedding(ids) - dense(ids)).norm() < 0.2 * dense(ids).norm()


def test_the_config_keeps_unknown_fields_and_round_trips() -> None:
    # Rule 9.
    plain = ProjClustConfig(n_clusters=3, rank=5).to_dict()
    config = ProjClustConfig.from_dict({**plain, "field_of_a_later_version": [1, 2]})
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored["field_of_a_later_version"] == [1, 2]
    assert stored["quant_method"] == "projclust"
    assert "dequantize" not in stored
    assert ProjClustConfig.from_dict(stored).to_dict() == stored
    with pytest.raises(ProjclustError, match="no option 'bitz'"):  # a slip of the pen, where there is no file
        ProjClustConfig(bitz=0.5)


def test_a_config_in_bits_means_codes() -> None:
    config = ProjClustConfig(bits=0.5)
    assert (config.codes, config.bits) == ("auto", 0.5)
    assert config.recipe.is_auto
    assert (ProjClustConfig().n_clusters, ProjClustConfig().rank, ProjClustConfig().codes) == (5, 40, None)
    with pytest.raises(ProjclustError, match="drop `j`"):
        ProjClustConfig(rank=5, codes="auto")
    with pytest.raises(ProjclustError, match="exactly one of"):
        ProjClustConfig(rank=5, bits=0.5)


def test_fields_of_later_options_are_stored_where_they_are_used() -> None:
    # A checkpoint of version 1 is what it was before there were any.
    plain = set(ProjClustConfig(3, 5).to_dict())
    assert not plain & {"ranks", "loss", "cluster_ranks", "cluster_sizes"}
    assert set(ProjClustConfig(3, 5, ranks="adaptive").to_dict()) - plain == {"ranks"}
    assert set(ProjClustConfig(3, 5, loss="l1").to_dict()) - plain == {"loss"}
    config = ProjClustConfig(3, 5, ranks="adaptive")
    shape = FactoredShape(9, 16, k=3, j=5, ranks=(4, 5, 6), sizes=(2, 3, 4))
    config = config.of_table(config.recipe, shape, {})
    stored = json.loads(json.dumps(config.to_dict()))
    assert (stored["version"], stored["cluster_ranks"], stored["cluster_sizes"]) == (2, [4, 5, 6], [2, 3, 4])
    assert ProjClustConfig.from_dict(stored).to_dict() == stored


def test_fields_of_coded_tables_are_stored_where_they_are_used(coded_folder: Path, int8_folder: Path) -> None:
    assert not {"bits", "metric", "coding"} & set(ProjClustConfig(3, 5).to_dict())
    for folder in (coded_folder, int8_folder):
        stored = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert stored["version"] == 3
        assert set(stored["coding"]) == {"decoders", "decoder_bits", "coded", "code_bytes"}
        assert ("bits" in stored) == ("metric" in stored) == (folder is coded_folder)
        config = ProjClustConfig.from_dict(stored)
        assert config.stored_shape().d == 16
        assert config.to_dict() == stored


@pytest.mark.parametrize("folder", ["adaptive_folder", *CODED_FOLDERS])
def test_the_bias_of_a_head_keeps_the_vocabularys_length(folder: str, request: pytest.FixtureRequest) -> None:
    # transformers stretches it to the length of the tied weight, whenever it ties.
    model = hf.AutoModelForMaskedLM.from_pretrained(request.getfixturevalue(folder))
    model.tie_weights()
    assert model.cls.predictions.bias.shape == (VOCABULARY,)
    model.get_output_embeddings()(torch.randn(2, 16))
    dense = model.dequantize()
    assert "_adjust_bias" not in dense.__dict__
    dense.resize_token_embeddings(VOCABULARY + 8)
    assert dense.cls.predictions.bias.shape == (VOCABULARY + 8,)


@pytest.mark.parametrize("version", [4, 0, "1", None])
def test_another_format_version_is_refused(compressed_folder: Path, version: object) -> None:
    # Rule 9.
    config = json.loads((compressed_folder / "config.json").read_text())
    config["quantization_config"]["version"] = version
    (compressed_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="upgrade projclust"):
        hf.AutoModel.from_pretrained(compressed_folder)


def test_registering_twice_changes_nothing() -> None:
    # Rule 10: transformers raises when a name is registered again.
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    from projclust.hf.quantizer import ProjClustHfQuantizer, register

    register()
    before = dict(AUTO_QUANTIZER_MAPPING), dict(AUTO_QUANTIZATION_CONFIG_MAPPING)
    register()
    assert before == (AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING)
    assert AUTO_QUANTIZER_MAPPING["projclust"] is ProjClustHfQuantizer


@pytest.mark.parametrize("folder", ["compressed_folder", *CODED_FOLDERS])
def test_adapters_train_merge_and_reload(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    path, ids = request.getfixturevalue(folder), inputs_for("bert")["input_ids"]
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(hf.AutoModelForMaskedLM.from_pretrained(path), config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=0.1)
    model(ids).logits.square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora" in name for name in changed)  # and not one byte of the embedding
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(hf.AutoModelForMaskedLM.from_pretrained(path), tmp_path / "adapter")
    assert torch.allclose(again.eval()(ids).logits, expected, atol=1e-6)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    assert isinstance(merged.get_input_embeddings(), CompressedTable)
    assert torch.allclose(merged.eval()(ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("how", CODED)
def test_device_maps_take_coded_models(how: str, tmp_path: Path) -> None:
    model = compressed_model("bert", how)
    model.save_pretrained(tmp_path)
    for device_map in ("cpu", {"": "cpu"}):
        placed = hf.AutoModelForMaskedLM.from_pretrained(tmp_path, device_map=device_map)
        assert torch.allclose(logits(placed, "bert"), logits(model, "bert"), atol=1e-6)


def test_a_whole_coded_model_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    ids = inputs_for("gpt2")["input_ids"]
    with torch.no_grad():
        try:
            torch.compile(tiny_model("gpt2"), backend="aot_eager", fullgraph=True)(ids, use_cache=False)
        except torch._dynamo.exc.Unsupported:
            pytest.skip("this torch cannot compile this transformers' dense GPT-2 either")
    model = compressed_model("gpt2", "auto")
    model.get_input_embeddings().prepare()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-5)
