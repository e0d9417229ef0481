"""docs/format.md, followed with numpy alone, gives the table the module gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import tiny_model, uneven_model

from projclust import compress_model
from projclust.modules import FactorizedTable


@pytest.mark.parametrize("affine", [False, True])
def test_the_documented_format_rebuilds_the_table(tmp_path: Path, affine: bool) -> None:
    model = compress_model(tiny_model("bert"), k=4, j=6, affine=affine)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    n, d = settings["num_embeddings"], settings["embedding_dim"]
    prefix = "bert.embeddings.word_embeddings."
    state = {name.removeprefix(prefix): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    weight, bases, clusters = state["weight"], state["bases"], state["clusters"]
    assert (settings["quant_method"], settings["version"]) == ("projclust", 1)
    assert weight.shape == (n, settings["rank"])
    assert bases.shape == (settings["n_clusters"], settings["rank"], d)

    order = np.argsort(clusters, kind="stable")
    table = np.empty((n, d), np.float32)
    for position, row in enumerate(order):
        table[row] = weight[position] @ bases[clusters[row]]
        if affine:
            table[row] += state["means"][clusters[row]]
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, FactorizedTable)
    assert np.allclose(table, embedding.dense_weight().numpy(), atol=1e-6)


@pytest.mark.parametrize("affine", [False, True])
def test_the_documented_format_of_unequal_ranks_rebuilds_the_table(tmp_path: Path, affine: bool) -> None:
    model = compress_model(uneven_model("bert"), k=4, j=6, affine=affine, ranks="adaptive")
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    n, d = settings["num_embeddings"], settings["embedding_dim"]
    ranks, sizes = settings["cluster_ranks"], settings["cluster_sizes"]
    prefix = "bert.embeddings.word_embeddings."
    state = {name.removeprefix(prefix): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    weight, bases, clusters = state["weight"], state["bases"], state["clusters"]
    assert (settings["version"], settings["ranks"]) == (2, "adaptive")
    assert len(set(ranks)) > 1
    assert weight.shape == (np.dot(sizes, ranks),)
    assert bases.shape == (sum(ranks), d)

    table = np.empty((n, d), np.float32)
    coefficients = np.split(weight, np.cumsum(np.multiply(sizes, ranks))[:-1])
    for cluster, basis in enumerate(np.split(bases, np.cumsum(ranks)[:-1])):
        rows = coefficients[cluster].reshape(sizes[cluster], ranks[cluster]) @ basis
        table[clusters == cluster] = rows + state["means"][cluster] if affine else rows
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, FactorizedTable)
    assert np.allclose(table, embedding.dense_weight().numpy(), atol=1e-6)
