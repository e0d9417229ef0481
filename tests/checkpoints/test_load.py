import json
import shutil
from pathlib import Path

import pytest
import torch
from damaging import forget_digest
from safetensors.torch import load_file, save_file
from tiny_models import compressed_model, logits, tiny_model
from transformers import BertForMaskedLM

from projclust import CheckpointError, ProjclustError, compress_model
from projclust.checkpoints.load import load_checkpoint
from projclust.checkpoints.save import copy_side_files, save_checkpoint
from projclust.checkpoints.source import quantization_method, resolve_checkpoint
from projclust.checkpoints.tensors import embedding_tensors, has_weights, stored_tensors


def test_resolves_folders_and_says_what_is_wrong_with_others(tiny_folder: Path, tmp_path: Path) -> None:
    assert resolve_checkpoint(str(tiny_folder)) == tiny_folder
    with pytest.raises(ProjclustError, match="holds no config.json"):
        resolve_checkpoint(str(tmp_path))
    for name in ("./absent", str(tmp_path / "absent"), "a/b/c", str(tiny_folder / "config.json")):
        with pytest.raises(ProjclustError, match="there is no model folder"):
            resolve_checkpoint(name)
    with pytest.raises(ProjclustError, match="--revision is for models on the Hub"):
        resolve_checkpoint(str(tiny_folder), "main")


def test_an_unknown_hub_name_is_one_clear_error() -> None:
    with pytest.raises(ProjclustError, match="no local folder, and the Hub cannot be reached"):
        resolve_checkpoint("projclust-tests/no-such-model")
    with pytest.raises(ProjclustError, match="neither a local folder nor a model"):
        resolve_checkpoint("not a valid name!")


def test_reads_headers_of_single_and_sharded_weights(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="8KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = stored_tensors(tmp_path / "one"), stored_tensors(tmp_path / "many")
    assert one == many
    assert sum(t.bytes for t in one.values()) == sum(p.numel() * 4 for p in model.parameters())
    next((tmp_path / "many").glob("*-00001-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="00001.* is missing"):
        stored_tensors(tmp_path / "many")


@pytest.mark.parametrize("how", ["equal", "auto", "int8", "int4"])
def test_a_sharded_compressed_checkpoint_loads(tmp_path: Path, how: str) -> None:
    model = compressed_model("bert", how)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load_checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.missing == []
    assert torch.equal(loaded.model.get_input_embeddings().dense_weight(), model.get_input_embeddings().dense_weight())


def test_finds_the_embedding_under_any_prefix(tmp_path: Path) -> None:
    compress_model(tiny_model("bert"), k=3, j=5).save_pretrained(tmp_path)
    tensors = stored_tensors(tmp_path)
    for name in ("embeddings.word_embeddings", "bert.embeddings.word_embeddings"):
        found = embedding_tensors(tensors, name)
        assert {key.rpartition(".")[2] for key in found} == {"weight", "bases", "clusters"}
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    dense = stored_tensors(tmp_path / "dense")
    assert list(embedding_tensors(dense, "embeddings.word_embeddings")) == ["bert.embeddings.word_embeddings.weight"]
    assert embedding_tensors(dense, "absent") == {}


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_weights_that_are_there_as_a_variant_only(tiny_folder: Path, tmp_path: Path, size: str) -> None:
    model = load_checkpoint(tiny_folder).model
    model.half().save_pretrained(tmp_path / "other", variant="fp16", max_shard_size=size)
    assert not (tmp_path / "other/model.safetensors").exists()
    assert has_weights(tmp_path / "other")
    loaded = load_checkpoint(tmp_path / "other")
    assert (loaded.missing, loaded.extra) == ([], {})
    expected = model.get_input_embeddings().weight
    assert torch.equal(loaded.model.get_input_embeddings().weight.half(), expected)
    assert sum(tensor.bytes for tensor in stored_tensors(tmp_path / "other").values()) == sum(
        parameter.nbytes for parameter in model.parameters()
    )
    (tmp_path / "other/model.int8.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the variants fp16, int8: keep the files of one"):
        load_checkpoint(tmp_path / "other")


def test_weights_must_be_safetensors(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors weights"):
        load_checkpoint(tiny_folder)
    torch.save({"a": torch.zeros(1)}, tiny_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which projclust does not read"):
        load_checkpoint(tiny_folder)


def test_a_compressed_checkpoint_must_be_complete(compressed_folder: Path) -> None:
    tensors = {name: torch.zeros(t.shape) for name, t in stored_tensors(compressed_folder).items()}
    forget_digest(compressed_folder)
    prefix = "bert.embeddings.word_embeddings."
    tensors[prefix + "clusters"] = torch.zeros(120, dtype=torch.uint8)
    dropped = next(name for name in tensors if "encoder" in name)
    del tensors[dropped]
    save_file(tensors, compressed_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{dropped} is missing"):
        load_checkpoint(compressed_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["NoSuchModel"]}, "no model class 'NoSuchModel'"),
        ({"architectures": ["torch"]}, "no model class 'torch'"),
        ({"architectures": [], "model_type": "no-such-type"}, "cannot be loaded"),
        ({"num_attention_heads": 5}, "cannot be loaded as BertForMaskedLM"),
        ({"hidden_size": 24}, "has another shape than config.json asks for"),
        ({"vocab_size": "many"}, "cannot be loaded"),
    ],
)
def test_a_damaged_config_is_one_clear_error(tiny_folder: Path, changes: dict[str, object], message: str) -> None:
    file = tiny_folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ProjclustError, match=message):
        load_checkpoint(tiny_folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00\x01", '{"a": ' * 5000])
def test_a_config_that_is_no_json_object_is_refused(tiny_folder: Path, content: str) -> None:
    (tiny_folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        load_checkpoint(tiny_folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_clusters", 0),
        ("n_clusters", 10**9),
        ("rank", 16),
        ("rank", 5.0),
        ("num_embeddings", None),
        ("affine", 1),
        ("codes", "x"),
        ("version", 2),
        ("cluster_ranks", [5, 5, 5]),
        ("cluster_sizes", [40, 40, 40]),
    ],
)
def test_impossible_shapes_in_the_config_are_refused(compressed_folder: Path, field: str, value: object) -> None:
    file = compressed_folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_checkpoint(compressed_folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1),
        ("cluster_ranks", None),
        ("cluster_ranks", 5),
        ("cluster_ranks", []),
        ("cluster_ranks", "abc"),
        ("cluster_ranks", [5, 5]),
        ("cluster_ranks", [5, 5, 5, 5]),
        ("cluster_ranks", [5, 5, 5.0]),
        ("cluster_ranks", [5, 5, True]),
        ("cluster_ranks", [5, 5, 0]),
        ("cluster_ranks", [5, 5, -1]),
        ("cluster_ranks", [5, 5, 16]),
        ("cluster_ranks", [5, 5, 10**30]),
        ("cluster_sizes", None),
        ("cluster_sizes", {}),
        ("cluster_sizes", [60, 60]),
        ("cluster_sizes", [121, -1, 0]),
        ("cluster_sizes", [60, 60, 1]),
        ("cluster_sizes", [40, 40, "40"]),
        ("cluster_sizes", [40.0, 40, 40]),
        ("cluster_sizes", [10**30, 0, 0]),
        ("cluster_sizes", [[40], [40], [40]]),
        ("n_clusters", 2),
        ("num_embeddings", 119),
    ],
)
def test_impossible_ranks_in_the_config_are_refused(adaptive_folder: Path, field: str, value: object) -> None:
    file = adaptive_folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged checkpoint") as caught:
        load_checkpoint(adaptive_folder)
    assert "\n" not in str(caught.value)


def test_ranks_and_sizes_of_another_table_are_refused(adaptive_folder: Path) -> None:
    file = adaptive_folder / "config.json"
    config = json.loads(file.read_text())
    stored = config["quantization_config"]
    ranks, sizes = stored["cluster_ranks"], stored["cluster_sizes"]
    for field, value in (
        ("cluster_ranks", [ranks[0] + 1, *ranks[1:]]),
        ("cluster_sizes", [sizes[0] - 1, sizes[1] + 1, sizes[2]]),
        ("cluster_sizes", sizes[::-1]),
        ("cluster_ranks", ranks[::-1]),
    ):
        file.write_text(json.dumps({**config, "quantization_config": {**stored, field: value}}))
        with pytest.raises(CheckpointError, match="has shape|have other sizes"):
            load_checkpoint(adaptive_folder)
    file.write_text(json.dumps(config))
    load_checkpoint(adaptive_folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1),
        ("version", 2),
        ("coding", None),
        ("coding", []),
        ("coding", {}),
        ("decoders", 0),
        ("decoders", 4),
        ("decoders", 1),
        ("decoder_bits", 5),
        ("decoder_bits", 4),
        ("coded", -1),
        ("coded", 14),
        ("coded", 10**30),
        ("code_bytes", "600"),
        ("code_bytes", 599),
        ("code_bytes", 600.0),
        ("n_clusters", 2),
        ("n_clusters", 257),
        ("n_clusters", 10**9),
        ("rank", 0),
        ("rank", 4),
        ("rank", 6),
        ("affine", True),
        ("affine", None),
        ("num_embeddings", 119),
        ("num_embeddings", 10**12),
        ("embedding_dim", 15),
        ("codes", "int3"),
    ],
)
def test_impossible_sizes_of_coded_tables_are_refused(int8_folder: Path, field: str, value: object) -> None:
    file = int8_folder / "config.json"
    config = json.loads(file.read_text())
    stored = config["quantization_config"]
    assert (stored["coding"]["code_bytes"], stored["coding"]["coded"]) == (600, 15)
    (stored["coding"] if field in stored["coding"] else stored)[field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(int8_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["coded_folder", "int8_folder", "int4_folder"])
def test_finds_every_tensor_of_a_coded_embedding(folder: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    found = embedding_tensors(stored_tensors(path), "embeddings.word_embeddings")
    shape = load_checkpoint(path).model.get_input_embeddings().shape
    assert {key.rpartition(".")[2]: tensor.shape for key, tensor in found.items()} == shape.stored
    assert sum(tensor.bytes for tensor in found.values()) == shape.bytes


def test_a_coded_checkpoint_must_be_complete(coded_folder: Path) -> None:
    file = coded_folder / "model.safetensors"
    tensors = load_file(file)
    dropped = next(name for name in tensors if "encoder" in name)
    del tensors[dropped]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{dropped} is missing"):
        load_checkpoint(coded_folder)


def test_side_files_travel_and_weights_configs_and_code_do_not(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    travelling = {
        "tokenizer.json",
        "vocab.txt",
        "spiece.model",
        "source.spm",
        "merges.txt",
        "special_tokens_map.json",
        "chat_template.jinja",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
    }
    staying = {
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "modeling.py",
        "README.md",
        "optimizer.pt",
        "a/vocab.txt",
    }
    for name in travelling | staying:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    target.mkdir()
    copy_side_files(source, target)
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} == travelling


def test_a_sentence_encoder_whose_own_layer_is_a_pickle_is_refused(tiny_folder: Path) -> None:
    (tiny_folder / "2_Dense").mkdir()
    (tiny_folder / "2_Dense" / "config.json").write_text('{"in_features": 16, "out_features": 8}')
    with pytest.raises(CheckpointError, match="the module 2_Dense has no safetensors weights"):
        load_checkpoint(tiny_folder)
    save_file({"linear.weight": torch.zeros(8, 16)}, tiny_folder / "2_Dense" / "model.safetensors")
    load_checkpoint(tiny_folder)


def test_old_names_of_layer_norms_are_kept_too(tiny_folder: Path, tmp_path: Path) -> None:
    # Checkpoints of early BERTs say gamma and beta; without `architectures` the whole head is beside the class.
    file = tiny_folder / "model.safetensors"
    state = load_file(file)
    for name in [key for key in state if "LayerNorm" in key]:
        state[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = state.pop(name)
    save_file(state, file, metadata={"format": "pt"})
    config = json.loads((tiny_folder / "config.json").read_text())
    del config["architectures"]
    (tiny_folder / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(tiny_folder)
    assert loaded.lost == []
    save_checkpoint(loaded, tmp_path / "out")
    before, after = BertForMaskedLM.from_pretrained(tiny_folder), BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(before, "bert"), logits(after, "bert"))


def test_names_the_quantization_method() -> None:
    assert quantization_method({}) is None
    assert quantization_method({"quantization_config": {"quant_method": "gptq"}}) == "gptq"
    for damaged in (3, {}, {"quant_method": None}):
        with pytest.raises(CheckpointError, match="names no quant_method"):
            quantization_method({"quantization_config": damaged})


def test_a_copy_of_a_checkpoint_is_the_same_checkpoint(
    compressed_folder: Path, coded_folder: Path, tmp_path: Path
) -> None:
    for folder in (compressed_folder, coded_folder):
        expected = logits(load_checkpoint(folder).model, "bert")
        moved = tmp_path / f"moved here, with spaces – ü {folder.name}"
        shutil.move(folder, moved)
        assert torch.allclose(logits(load_checkpoint(moved).model, "bert"), expected, rtol=0, atol=1e-6)


def test_codes_that_are_none_are_refused_before_anything_is_fitted() -> None:
    model = tiny_model("bert")
    for options, message in (
        ({"bits": 4, "codes": "int9"}, "`codes` must be one of"),
        ({"j": 5, "codes": "auto"}, "drop `j`"),
        ({"bits": 0}, "`bits` must lie between 0 and 32"),
        ({"bits": 6, "method": "svd", "codes": "auto"}, "drop `method`"),
        ({"bits": 6, "metric": "l2"}, "`sensitivity` must be one of"),
    ):
        with pytest.raises(ProjclustError, match=message):
            compress_model(model, **options)
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
