"""Models that are a table and nothing else: StaticEmbedding of sentence-transformers, and model2vec."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from commandline import Cli, snapshot
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from projclust.cli.app import run
from projclust.tables import CompressedTable

sentence_transformers = pytest.importorskip("sentence_transformers")

N, D = 120, 16
TEXTS = ["w5 w6 w7", "w8", "w9 w3 nothing w9", " ".join(f"w{number}" for number in range(2, 110))]


def tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(2, N))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[PAD]", "[UNK]"])
    # Which a static embedding does not heed.
    made.post_processor = processors.TemplateProcessing(single="w2 $A w3", special_tokens=[("w2", 2), ("w3", 3)])
    return made


def table() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def save_static(folder: Path) -> Path:
    from sentence_transformers.models import Normalize, StaticEmbedding

    modules = [StaticEmbedding(tokenizer(), embedding_weights=table()), Normalize()]
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def save_nested(folder: Path) -> Path:
    """As sentence-transformers once saved them."""
    save_static(folder)
    part = folder / "0_StaticEmbedding"
    part.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(part / name)
    own = json.loads((folder / "modules.json").read_text())
    own[0] |= {"path": part.name, "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps(own))
    return folder


def save_model2vec(folder: Path) -> Path:
    """Half of the rows, shared by tokens that weigh them."""
    folder.mkdir()
    made = tokenizer()
    made.enable_truncation(50)
    made.save(str(folder / "tokenizer.json"))
    weights = {"mapping": torch.arange(N) % 60, "weights": torch.linspace(0.5, 1.5, N, dtype=torch.float64)}
    save_file({"embeddings": table()[:60].clone(), **weights}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"normalize": True, "embedding_dtype": "float32"}))
    kinds = [(".", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    own = [{"name": kind, "path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(own))
    return folder


def vectors(folder: Path) -> np.ndarray:
    found: np.ndarray = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    return found


@pytest.mark.parametrize("save", [save_static, save_nested, save_model2vec])
@pytest.mark.parametrize("options", [("--bits", 8), ("--k", 3, "--j", 15)])
def test_a_table_alone_is_compressed_and_sentence_transformers_loads_it(
    save: type, options: tuple[object, ...], tmp_path: Path
) -> None:
    source, small, dense = save(tmp_path / "source"), tmp_path / "small", tmp_path / "dense"
    before = snapshot(source)
    arguments = ["compress", source, *options, "--weights", "uniform", "-o", small]
    assert run([str(argument) for argument in arguments]) == 0
    assert snapshot(source) == before
    expected, found = vectors(source), vectors(small)
    assert np.sum(expected * found, 1).min() > 0.95
    assert "word_embedding.bases" in load_file(small / "model.safetensors") or "--bits" in options
    assert run(["expand", str(small), "-o", str(dense)]) == 0
    assert np.allclose(vectors(dense), found, atol=1e-5)
    assert load_file(dense / "model.safetensors").keys() == {"embedding.weight"}
    kinds = [own["type"].rpartition(".")[2] for own in json.loads((dense / "modules.json").read_text())]
    assert kinds == ["StaticEmbedding", "Normalize"]
    assert not (dense / "config.json").exists()


def test_what_the_commands_say_of_it(tmp_path: Path, cli: Cli) -> None:
    source = save_static(tmp_path / "source")
    shown = cli("inspect", source, "--format", "json").json
    assert (shown["model_class"], shown["n"], shown["d"], shown["compressed"]) == ("StaticEmbedding", N, D, False)
    small = tmp_path / "small"
    assert cli("compress", source, "--bits", 4, "-o", small).code == 0
    shown = cli("inspect", small, "--format", "json").json
    assert (shown["model_class"], shown["compressed"]) == ("StaticEmbedding", True)
    assert shown["bytes_stored"] <= N * D // 2
    card = (small / "README.md").read_text()
    assert 'SentenceTransformer("path/or/repo")' in card
    assert "XLNet" not in card
    assert "recipe" in cli("plan", source, "--bits", "4").out
    assert "next: SentenceTransformer(" in cli("expand", small, "-o", tmp_path / "dense").out


def test_a_part_of_a_router_is_compressed_and_put_in_its_place(tmp_path: Path, cli: Cli) -> None:
    from sentence_transformers.models import Pooling, Router, Transformer

    tiny_model("bert").base_model.save_pretrained(tmp_path / "bert")
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="[PAD]").save_pretrained(tmp_path / "bert")
    ways = [[Transformer(str(tmp_path / "bert")), Pooling(D)] for _ in range(2)]
    router = Router.for_query_document(query_modules=ways[0], document_modules=ways[1])
    whole = tmp_path / "router"
    sentence_transformers.SentenceTransformer(modules=[router], device="cpu").save(str(whole))
    expected, texts = vectors(whole), TEXTS[:3]
    outcome = cli("compress", whole, "--bits", 8, "-o", tmp_path / "small")
    assert outcome.code == 2
    assert "folders of their own (document_0_Transformer, query_0_Transformer): give one" in outcome.err
    part = whole / "document_0_Transformer"
    assert cli("compress", part, "--bits", 8, "-o", tmp_path / "small").code == 0
    shutil.rmtree(part)
    (tmp_path / "small").rename(part)
    model = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    found = model.encode(TEXTS)
    assert any(isinstance(module, CompressedTable) for module in model.modules())
    assert np.allclose(found, expected, atol=0.1)
    assert model.encode_query(texts).shape == model.encode_document(texts).shape == (3, D)


@pytest.mark.parametrize(("name", "content"), [("model.safetensors", b"no"), ("tokenizer.json", b'{"model": 3}')])
def test_a_damaged_one_is_refused(name: str, content: bytes, tmp_path: Path, cli: Cli) -> None:
    source = save_static(tmp_path / "source")
    (source / name).write_bytes(content)
    outcome = cli("compress", source, "--bits", 4, "-o", tmp_path / "small")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert name in outcome.err
    assert not (tmp_path / "small").exists()
