"""Whole models: onnxruntime's outputs are PyTorch's, and the files hold what they should."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from onnx.numpy_helper import to_array
from onnx_graphs import Done, run, sizes
from tiny_models import VOCABULARY, WIDTH, compressed_model

Export = Callable[..., Done]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def encoder(kind: type = hf.BertModel, **settings: object) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return kind(hf.BertConfig(**SHAPE, max_position_embeddings=40, **settings))


@pytest.fixture(scope="module")
def done(export: Export) -> Done:
    """A coded encoder with every body."""
    return export(encoder(), "auto", "int4,float32,int8")


def test_an_encoder_in_any_batch_and_length(done: Done) -> None:
    for shape in ((1, 5), (2, 6), (3, 30)):
        found, expected = done.outputs(*shape)
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "how"),
    [("bert", "auto"), ("bert", "adaptive affine"), ("gpt2", "auto"), ("gpt2", "int8"), ("roberta", "dense")],
)
def test_language_models(export: Export, name: str, how: str) -> None:
    done = export(name, how)
    found, expected = done.outputs(2, 9)
    assert found.shape[-1] == VOCABULARY
    assert torch.allclose(found, expected, atol=1e-4)
    assert (VOCABULARY * WIDTH in sizes(done.graph()).values()) == (how == "dense")
    assert list(sizes(done.graph()).values()).count(VOCABULARY * WIDTH) <= 1  # a tied table is there once


def test_tokens_that_were_added(export: Export) -> None:
    model = compressed_model("gpt2", "auto")
    model.resize_token_embeddings(VOCABULARY + 3)
    done = export(model, "dense")
    assert VOCABULARY * WIDTH not in sizes(done.graph()).values()
    ids = torch.tensor([[5, VOCABULARY, VOCABULARY + 2, 0]])
    with torch.no_grad():
        assert torch.allclose(run(done.graph(), ids, torch.ones_like(ids)), model(ids).logits, atol=1e-4)


def test_a_classifier(export: Export) -> None:
    done = export(encoder(hf.BertForSequenceClassification, num_labels=3), "auto", "int8")
    found, expected = done.outputs(2, 9, name="model_quantized.onnx")
    assert found.shape == (2, 3)
    assert torch.allclose(found, expected, atol=0.05)
    assert done.report.task == "text-classification"


def test_quantized_bodies_leave_the_table_alone(done: Done) -> None:
    plain = {tensor.name: tensor for tensor in done.graph().graph.initializer}
    codes = [name for name, tensor in plain.items() if name.startswith("model.embeddings.word_embeddings.")]
    assert "model.embeddings.word_embeddings.weight" in codes
    for name, least in (("model_quantized.onnx", "MatMulInteger"), ("model_q4.onnx", "MatMulNBits")):
        graph = done.graph(name)
        held = {tensor.name: tensor for tensor in graph.graph.initializer}
        assert all(np.array_equal(to_array(held[name]), to_array(plain[name])) for name in codes)
        assert sum(node.op_type == least for node in graph.graph.node) == 6
        found, expected = done.outputs(2, 9, name=name)
        assert torch.cosine_similarity(found, expected).mean() > 0.95
    rows = {}
    for name in ("model.onnx", "model_quantized.onnx", "model_q4.onnx"):
        graph = done.graph(name)
        reads = {value for node in graph.graph.node for value in node.input}
        rows[name] = [name for name in codes if name in reads]
    assert rows["model.onnx"] == rows["model_quantized.onnx"] == rows["model_q4.onnx"] == codes


def test_a_layer_whose_inputs_have_giants_among_them_gets_them_as_floats(export: Export) -> None:
    """As layers of multilingual-e5-small do; one step for all would round the others to nothing."""
    model = encoder()
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.bias[3] = 3000.0
        model.encoder.layer[0].output.dense.weight[:, 3] = 0
    done = export(model, "dense", "int8")
    graph = done.graph("model_quantized.onnx").graph
    held = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    whole = [held[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in held]
    assert [(weight.dtype.name, weight.shape) for weight in whole] == [("int8", (32, WIDTH))]
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 5
    assert (32, WIDTH) not in [value.shape for value in held.values() if value.dtype == np.float32]
    found, expected = done.outputs(2, 9, name="model_quantized.onnx")
    assert torch.cosine_similarity(found - found.mean(1, True), expected - expected.mean(1, True), -1).min() > 0.99


def test_what_programs_read_beside_the_graphs(done: Done) -> None:
    assert sorted(path.name for path in (done.output / "onnx").iterdir()) == [
        "model.onnx",
        "model_q4.onnx",
        "model_quantized.onnx",
    ]
    config = json.loads((done.output / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert "quantization_config" not in config
    assert hf.AutoModel.from_config(hf.AutoConfig.from_pretrained(done.output)).num_parameters() > 0
    assert len(hf.AutoTokenizer.from_pretrained(done.output)) == VOCABULARY
    card = (done.output / "README.md").read_text()
    for part in ("InferenceSession", "@huggingface/transformers", 'dtype: "q4"'):
        assert part in card
    for file in done.report.files:
        assert (done.output / file.path).stat().st_size == file.bytes


def test_a_graph_is_plain(done: Done) -> None:
    graph = done.graph()
    assert [(own.domain, own.version) for own in graph.opset_import] == [("", 18)]
    assert not graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    assert {own.name for own in graph.graph.output} == {"last_hidden_state"}
    assert [dimension.dim_param for own in graph.graph.input for dimension in own.type.tensor_type.shape.dim] == 3 * [
        "batch",
        "sequence",
    ]
    onnx.checker.check_model(graph)


def test_a_folder_says_what_transformers_js_is_to_take(export: Export) -> None:
    output = export(encoder(), "dense").output
    assert json.loads((output / "config.json").read_text())["transformers.js_config"] == {"dtype": "fp32"}
