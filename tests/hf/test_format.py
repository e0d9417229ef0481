"""docs/format.md, followed with numpy alone, gives the table the module gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file
from tiny_models import tiny_model, uneven_model

from projclust import compress_model
from projclust.coding.codebooks import CODEBOOKS_FILE, KINDS
from projclust.hf.body import body_weights
from projclust.options import Body
from projclust.tables import CodedEmbedding, FactorizedTable

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
PREFIX = "bert.embeddings.word_embeddings."


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


def documented_table(folder: Path, prefix: str) -> np.ndarray[Any, Any]:
    """What the code in docs/format.md makes of a coded checkpoint."""
    blocks = [part.split("```")[0] for part in DOCUMENT.read_text().split("```python\n")[1:]]
    (code,) = (block for block in blocks if "books" in block)
    assert code.count("\n") <= 30
    state = {
        name.removeprefix(prefix): t for name, t in load_file(folder / "model.safetensors").items() if prefix in name
    }
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    names = {"np": np, "q": settings, "t": state, "books": load_file(CODEBOOKS_FILE)}
    exec(code, names)
    table = names["table"]
    assert isinstance(table, np.ndarray)
    return table


def assert_documented(model: hf.PreTrainedModel, folder: Path, prefix: str = PREFIX) -> None:
    model.save_pretrained(folder)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, CodedEmbedding)
    table = embedding.dense_weight().detach().numpy()
    assert np.allclose(documented_table(folder, prefix), table, rtol=1e-5, atol=1e-6 * float(np.abs(table).max()))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 6.0, "metric": "none"},
        {"k": 3, "j": 5, "codes": "int8"},
        {"k": 3, "j": 5, "codes": "int4", "affine": True},
        {"k": 20, "j": 3, "codes": "int4"},  # class ids of a byte
        {"k": 1, "j": 7, "codes": "int8"},
    ],
)
def test_the_documented_code_rebuilds_coded_tables(tmp_path: Path, options: dict[str, Any]) -> None:
    model = compress_model(tiny_model("bert"), **options)
    assert_documented(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings["version"] == 3
    assert settings["codes"] == options.get("codes", "auto")
    # Every tensor of the tables above, and no other, in the documented shape.
    text = DOCUMENT.read_text().split("## Version 3")[1]
    state = {n.removeprefix(PREFIX): t for n, t in load_file(tmp_path / "model.safetensors").items() if PREFIX in n}
    assert {tensor.dtype.name for tensor in state.values()} == {"uint8"}
    assert all(f"`{name}`" in text for name in state)
    assert set(settings["coding"]) == {"decoders", "decoder_bits", "coded", "code_bytes"}
    assert len(state["weight"]) == settings["coding"]["code_bytes"]
    assert len(state["deviations"]) == settings["coding"]["coded"]


@pytest.mark.parametrize("body", Body)
def test_the_documented_body_rebuilds_the_weights(tmp_path: Path, body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projclust.hf.body._LEAST", 64)
    model = compress_model(tiny_model("bert"), bits=6.0, weights="uniform", body=body)
    model.save_pretrained(tmp_path)
    (code,) = (part.split("```")[0] for part in DOCUMENT.read_text().split("```python\n") if "def rows" in part)
    names: dict[str, Any] = {"np": np}
    exec(code, names)
    stored = load_file(tmp_path / "model.safetensors")
    packed = {name: own.weight.detach() for name, own in body_weights(model, body).items() if name in stored}
    assert len(packed) > 5
    for name, weight in packed.items():
        rebuilt = names["rows"](stored[name], weight[0].numel())
        assert np.array_equal(rebuilt, weight.flatten(1).numpy()), name


def test_the_documented_kinds_are_those_there_are() -> None:
    rows = [line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines()]
    documented = {row[0]: row[1:] for row in rows}
    assert documented["kind"] == [str(number) for number in range(len(KINDS))]
    assert documented["name"] == [kind.name for kind in KINDS]
    assert documented["bits of a step"] == [str(kind.bits) for kind in KINDS]
    assert documented["coordinates of a step"] == [str(kind.values) for kind in KINDS]


@pytest.mark.parametrize(
    "options", [{"bits": 3.5, "metric": "none"}, {"k": 3, "j": 40, "codes": "int8"}, {"k": 3, "j": 41, "codes": "int4"}]
)
def test_the_documented_code_rebuilds_rows_of_minilm(
    tmp_path: Path, minilm_table: torch.Tensor, options: dict[str, Any]
) -> None:
    shape = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = hf.BertModel(hf.BertConfig(vocab_size=700, max_position_embeddings=8, **shape))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(minilm_table[2000:2700])
    weights = 1 / (1.0 + np.arange(700))
    quick: dict[str, Any] = {} if "bits" in options else {"restarts": 1}
    model = compress_model(model, sample_weight=weights, **quick, **options)
    assert_documented(model, tmp_path, "embeddings.word_embeddings.")


def test_a_trained_coded_table_is_stored_as_documented(tmp_path: Path) -> None:
    model = compress_model(tiny_model("bert"), bits=6.0, metric="none")
    embedding = model.get_input_embeddings()
    embedding.requires_grad_(True)
    with torch.no_grad():
        for parameter in embedding.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    assert_documented(model, tmp_path)
