"""Random damage to a checkpoint: the loader answers with its one error class, or loads what is still valid."""

import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import logits, uneven_model

from projclust import ProjclustError, compress_model
from projclust.hf.checkpoint import load_checkpoint

FLIPS = 1000


@pytest.mark.parametrize("ranks", ["equal", "adaptive"])
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, ranks: str) -> None:
    intact = tmp_path / "intact"
    compress_model(uneven_model("bert"), k=3, j=5, affine=True, ranks=ranks).save_pretrained(intact)
    damaged = tmp_path / "damaged"
    shutil.copytree(intact, damaged)
    generator = random.Random(0)
    header = 8 + int.from_bytes((intact / "model.safetensors").read_bytes()[:8], "little")
    # A flip in the weights' data seldom shows; most of the damage goes where it does.
    places = [("config.json", None), ("model.safetensors", header), ("model.safetensors", None)]
    refused = loaded = lines = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(FLIPS):
        name, limit = places[number % 3]
        content = bytearray((intact / name).read_bytes())
        for _ in range(generator.choice((1, 1, 2, 8))):
            content[generator.randrange(limit or len(content))] ^= 1 << generator.randrange(8)
        (damaged / name).write_bytes(content)
        try:
            clusters = load_checkpoint(damaged).model.get_input_embeddings().clusters
            assert int(clusters.max()) < 3
            loaded += 1
        except ProjclustError as error:
            refused += 1
            lines += str(error).count("\n")
        (damaged / name).write_bytes((intact / name).read_bytes())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert refused > FLIPS / 4
    assert lines == 0
    assert loaded > FLIPS / 20  # harmless flips exist; if none loaded, the test would only see its own damage
    assert grown < 500 * 2**20
    assert torch.equal(logits(load_checkpoint(damaged).model, "bert"), logits(load_checkpoint(intact).model, "bert"))
