"""Tables and heads under torch.onnx.export: onnxruntime reads the rows that PyTorch reads."""

from pathlib import Path

import onnx
import pytest
import torch
from coded_tables import coded, embedding_of, falling_weights, gaussian, skewed_table
from onnx_graphs import after_loading, exported, numel, run, sizes, unsafe
from tiny_models import VOCABULARY, WIDTH, compressed_model

from projclust.coding import portable
from projclust.coding.fit import fit_coded
from projclust.tables import CodedEmbedding, CodedLMHead

TABLES = {
    "auto": {},
    "auto, few bits": {"bits": 1.5},
    "auto, three decoders": {"classes": 6, "decoders": 3},
    "auto, own decoders": {"decoders": 4},
    "auto, one class": {"classes": 1},
    "auto, more classes than nibbles": {"classes": 20, "n": 600},
}


def table_of(kind: str) -> CodedEmbedding:
    embedding = embedding_of(coded(**TABLES[kind]))  # type: ignore[arg-type]
    embedding.prepare()
    return embedding


@pytest.mark.parametrize("kind", TABLES)
def test_every_row_of_a_coded_table(kind: str, tmp_path: Path) -> None:
    embedding = table_of(kind)
    ids = torch.arange(embedding.num_embeddings).view(-1, 2)
    graph = exported(embedding, ids[:3], tmp_path / "table.onnx")
    assert (run(graph, ids) - embedding.dense_weight().view(*ids.shape, -1)).abs().max() < 1e-5
    assert not unsafe(graph)


@pytest.mark.parametrize("how", ["int8", "int4", "equal", "equal affine", "adaptive", "adaptive affine"])
def test_every_row_of_subspaces(how: str, tmp_path: Path) -> None:
    embedding = compressed_model("bert", how).get_input_embeddings()
    ids = torch.arange(VOCABULARY).view(-1, 2)
    graph = exported(embedding, ids[:3], tmp_path / "table.onnx")
    assert (run(graph, ids) - embedding.dense_weight().view(*ids.shape, -1)).abs().max() < 1e-5
    assert not unsafe(graph)
    assert VOCABULARY * WIDTH not in sizes(graph).values()


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_tokens_than_decoders(count: int, tmp_path: Path) -> None:
    embedding = table_of("auto, own decoders")
    graph = exported(embedding, torch.arange(7), tmp_path / "table.onnx")
    ids = torch.arange(200, 200 + count)
    assert torch.allclose(run(graph, ids), embedding(ids), atol=1e-5)


@pytest.mark.parametrize("kind", ["auto", "auto, few bits", "auto, own decoders", "auto, one class"])
def test_a_tied_head(kind: str, tmp_path: Path) -> None:
    embedding = table_of(kind)
    head = CodedLMHead(embedding.shape, bias=True, primary=embedding)
    assert head.bias is not None
    torch.nn.init.normal_(head.bias)
    graph = exported(head, gaussian(4, 12), tmp_path / "head.onnx")
    hidden = gaussian(9, 12, seed=1)
    assert torch.allclose(run(graph, hidden), head(hidden), atol=1e-4)
    assert not unsafe(graph)


def test_no_runtime_keeps_the_table_that_a_head_reads(tmp_path: Path) -> None:
    # All that a head decodes follows from what is stored, which runtimes take as a reason to do it once and for all.
    n, d = 3000, 12
    embedding = embedding_of(fit_coded(skewed_table(n, d), 4 * n, falling_weights(n), classes=4))
    embedding.prepare()
    head = CodedLMHead(embedding.shape, primary=embedding)
    graph = exported(head, gaussian(4, d), tmp_path / "head.onnx")
    loaded = after_loading(graph, tmp_path / "loaded.onnx")
    held = {tensor.name: numel(tensor) for tensor in loaded.graph.initializer}
    assert max(held.values()) <= embedding.shape.code_bytes < n * d / 2
    assert torch.allclose(run(loaded, gaussian(2, d)), head(gaussian(2, d)), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floats_are_taken_apart_exactly(dtype: torch.dtype) -> None:
    words = torch.arange(2**16)
    stored = torch.stack([words % 256, words // 256], -1).to(torch.uint8)
    expected = stored.view(dtype).squeeze(-1).float()
    finite = expected.isfinite()
    assert torch.equal(portable.floats(stored, dtype)[finite], expected[finite])


def test_the_graph_holds_the_bytes_of_the_file(tmp_path: Path) -> None:
    embedding = table_of("auto")
    program = torch.onnx.export(embedding.eval(), (torch.arange(4),), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    program.save(tmp_path / "table.onnx")
    graph = onnx.load(tmp_path / "table.onnx")
    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name, values in embedding.stored.items():
        assert onnx.numpy_helper.to_array(held[name]).tobytes() == values.numpy().tobytes()
