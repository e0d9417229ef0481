"""What a folder states of its compressed table, what it holds, and what it held when it was saved: the same."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from damaging import forget_digest, rewrite, state, stated
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import COMPRESSIONS, compressed_model, tiny_model

from projclust import CheckpointError, compress_model, unfreeze
from projclust.checkpoints.load import load_checkpoint
from projclust.jobs.expand import expand_checkpoint
from projclust.jobs.inspect import inspect_checkpoint
from projclust.jobs.options import ExpandOptions

TABLE = "bert.embeddings.word_embeddings."


def expand(folder: Path) -> object:
    return expand_checkpoint(ExpandOptions(str(folder), str(folder.parent / "expanded"), overwrite=True))


def inspect(folder: Path) -> object:
    return inspect_checkpoint(str(folder))


# Every way in.
READERS: tuple[Callable[[Path], object], ...] = (load_checkpoint, hf.BertForMaskedLM.from_pretrained, expand, inspect)


def saved(folder: Path, how: str) -> Path:
    compressed_model("bert", how).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("how", ["equal affine", "adaptive", "auto", "int8", "int4"])
def test_a_tensor_of_another_dtype_is_refused(tmp_path: Path, how: str, dtype: torch.dtype) -> None:
    folder = saved(tmp_path, how)
    forget_digest(folder)
    intact = load_file(folder / "model.safetensors")
    for name in [name for name in intact if name.startswith(TABLE)]:
        if dtype == torch.float32 and intact[name].is_floating_point():
            continue
        rewrite(folder, lambda tensors, name=name: tensors.update({name: intact[name].to(dtype)}))  # type: ignore[misc]
        for read in READERS:
            with pytest.raises(CheckpointError, match=f"{name} has dtype"):
                read(folder)
        rewrite(folder, lambda tensors: tensors.update(intact))
    for read in READERS:
        read(folder)


def test_factors_of_any_float_dtype_are_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, "equal affine")
    forget_digest(folder)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        rewrite(folder, lambda tensors, to=dtype: tensors.update({TABLE + "bases": tensors[TABLE + "bases"].to(to)}))  # type: ignore[misc]
        load_checkpoint(folder)


def test_a_tensor_that_config_json_does_not_name_is_refused(tmp_path: Path) -> None:
    for how in ("equal affine", "adaptive affine", "auto", "int4"):
        folder = saved(tmp_path / how, how)
        state(folder, affine=False, sha256=None)
        for read in READERS:
            with pytest.raises(CheckpointError, match=f"says nothing of {TABLE}mean"):
                read(folder)


@pytest.mark.parametrize("how", [*COMPRESSIONS])
def test_a_flipped_bit_of_the_table_is_refused(tmp_path: Path, how: str) -> None:
    folder = saved(tmp_path, how)
    intact = (folder / "model.safetensors").read_bytes()
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(TABLE)]  # noqa: SIM118
    start = 8 + int.from_bytes(intact[:8], "little")
    header = json.loads(intact[8:start])
    generator = random.Random(0)
    for number in range(12):
        begin, end = header[names[number % len(names)]]["data_offsets"]
        content = bytearray(intact)
        content[start + generator.randrange(begin, end)] ^= 1 << generator.randrange(8)
        (folder / "model.safetensors").write_bytes(content)
        for read in READERS:
            with pytest.raises(CheckpointError):
                read(folder)
    (folder / "model.safetensors").write_bytes(intact)
    for read in READERS:
        read(folder)


def test_a_table_too_large_to_be_hashed_at_load_is_hashed_when_it_is_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, "equal")
    rewrite(folder, lambda tensors: tensors[TABLE + "weight"].mul_(2))
    monkeypatch.setattr("projclust.hf.stored._HASHED_AT_LOAD", 100)
    load_checkpoint(folder)
    for read in (expand, inspect):
        with pytest.raises(CheckpointError, match="get the files again"):
            read(folder)


@pytest.mark.parametrize("how", ["equal", "adaptive affine", "auto", "int8"])
def test_what_is_saved_again_is_the_same_bytes(tmp_path: Path, how: str) -> None:
    first, second = saved(tmp_path, how), tmp_path / "second"
    hf.BertForMaskedLM.from_pretrained(first).save_pretrained(second)
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert len(str(stated(second)["sha256"])) == 64
    hf.BertForMaskedLM.from_pretrained(first).save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    assert stated(tmp_path / "shards") == stated(first)
    for read in READERS:
        read(tmp_path / "shards")


def test_floats_are_hashed_as_they_are_stored(tmp_path: Path) -> None:
    for codes in ("float16", "bfloat16"):
        compress_model(tiny_model("bert"), k=3, j=5, codes=codes).save_pretrained(tmp_path / codes)
        for read in READERS:
            read(tmp_path / codes)
        hf.BertForMaskedLM.from_pretrained(tmp_path / codes, dtype=torch.float16)


@pytest.mark.parametrize("how", ["equal", "auto"])
def test_training_and_saving_gives_another_digest(tmp_path: Path, how: str) -> None:
    folder = saved(tmp_path, how)
    model = unfreeze(hf.BertForMaskedLM.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.get_input_embeddings().parameters():
            parameter.mul_(1.5)
    # Whoever writes the files by hand has none, and no wrong one.
    assert "sha256" not in model.config.to_dict()["quantization_config"]
    model.save_pretrained(tmp_path / "trained")
    assert stated(tmp_path / "trained")["sha256"] != stated(folder)["sha256"]
    for read in READERS:
        read(tmp_path / "trained")


def test_a_folder_without_a_digest_is_read_as_before(tmp_path: Path) -> None:
    folder = saved(tmp_path, "auto")
    forget_digest(folder)
    for read in READERS:
        read(folder)
    state(folder, sha256=3)
    for read in READERS:
        with pytest.raises(CheckpointError, match="damaged checkpoint"):
            read(folder)


@pytest.mark.parametrize("how", ["equal affine", "auto"])
def test_a_missing_tensor_is_named_by_every_reader(tmp_path: Path, how: str) -> None:
    folder = saved(tmp_path, how)
    intact = load_file(folder / "model.safetensors")
    for name in [name for name in intact if name.startswith(TABLE)]:
        rewrite(folder, lambda tensors, name=name: tensors.pop(name))  # type: ignore[misc]
        for read in READERS:
            with pytest.raises(CheckpointError, match=r"missing|no such tensor|holds no weights for"):
                read(folder)
        rewrite(folder, lambda tensors: tensors.update(intact))
