"""Random damage to a checkpoint: the loader answers with its one error class, or loads what is still valid."""

import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from damaging import forget_digest
from safetensors.torch import load_file, save_file
from tiny_models import compressed_model, logits

from projclust import CheckpointError, ProjclustError
from projclust.checkpoints.load import load_checkpoint
from projclust.tables import CodedTable

FLIPS = 1000


@pytest.mark.parametrize("how", ["equal affine", "adaptive affine", "auto", "int4"])
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, how: str) -> None:
    intact = tmp_path / "intact"
    compressed_model("bert", how).save_pretrained(intact)
    damaged = tmp_path / "damaged"
    shutil.copytree(intact, damaged)
    generator = random.Random(0)
    header = 8 + int.from_bytes((intact / "model.safetensors").read_bytes()[:8], "little")
    # A flip in the weights' data seldom shows; most of the damage goes where it does.
    places = [("config.json", None), ("model.safetensors", header), ("model.safetensors", None)]
    refused = loaded = lines = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flips = FLIPS if "affine" in how else FLIPS // 3
    for number in range(flips):
        name, limit = places[number % 3]
        content = bytearray((intact / name).read_bytes())
        for _ in range(generator.choice((1, 1, 2, 8))):
            content[generator.randrange(limit or len(content))] ^= 1 << generator.randrange(8)
        (damaged / name).write_bytes(content)
        try:
            embedding = load_checkpoint(damaged).model.get_input_embeddings()
            if isinstance(embedding, CodedTable):
                with torch.no_grad():  # a row whose bytes are others is another row, and no crash
                    assert embedding(torch.arange(embedding.shape.n)).shape == (120, 16)
            else:
                assert int(embedding.clusters.max()) < 3
            loaded += 1
        except ProjclustError as error:
            refused += 1
            lines += str(error).count("\n")
        (damaged / name).write_bytes((intact / name).read_bytes())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert refused > flips / 4
    assert lines == 0
    assert loaded > flips / 20  # harmless flips exist; if none loaded, the test would only see its own damage
    assert grown < 500 * 2**20
    assert torch.equal(logits(load_checkpoint(damaged).model, "bert"), logits(load_checkpoint(intact).model, "bert"))


@pytest.mark.parametrize("how", ["auto", "int4"])
def test_any_damage_to_the_bytes_of_a_coded_table_is_an_error_or_another_table(tmp_path: Path, how: str) -> None:
    compressed_model("bert", how).save_pretrained(tmp_path)
    forget_digest(tmp_path)
    file, generator = tmp_path / "model.safetensors", random.Random(1)
    intact = load_file(file)
    coded = [name for name in intact if "word_embeddings" in name]
    refused = loaded = lines = 0
    for number in range(150):
        state = {name: tensor.clone() for name, tensor in intact.items()}
        name = coded[number % len(coded)]
        for _ in range(generator.choice((1, 1, 4))):
            state[name].view(-1)[generator.randrange(state[name].numel())] = generator.randrange(256)
        save_file(state, file, metadata={"format": "pt"})
        try:
            embedding = load_checkpoint(tmp_path).model.get_input_embeddings()
            side = embedding.side_tables()
            assert all(
                part.isfinite().all() for part in (side.deviations, side.means, side.decoders) if part is not None
            )
            assert embedding(torch.arange(120)).shape == (120, 16)
            loaded += 1
        except CheckpointError as error:
            refused += 1
            lines += str(error).count("\n")
    assert lines == 0
    assert refused > 10
    assert loaded > 50
