"""Real pretrained weights, as BERT, DistilBERT and RoBERTa."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from probe_stsb import encode, probe
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from projclust.jobs.compress import compress_checkpoint
from projclust.jobs.expand import expand_checkpoint
from projclust.jobs.options import CompressOptions, ExpandOptions
from projclust.recipes.recipe import Recipe

SENTENCES = ["A man is playing a guitar.", "The stock market fell sharply today.", "Zürich is a city in Switzerland."]


def hidden_states(folder: Path) -> Tensor:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states: Tensor = hf.AutoModel.from_pretrained(folder)(
            **tokenizer(SENTENCES, padding=True, return_tensors="pt")
        )[0]
    return states


def factors(folder: Path) -> dict[str, Tensor]:
    state = load_file(folder / "model.safetensors")
    return {name.rpartition(".")[2]: t for name, t in state.items() if "word_embeddings." in name}


@pytest.fixture(scope="module")
def compressed_forms(minilm_forms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compressed")
    for form, folder in minilm_forms.items():
        compress_checkpoint(CompressOptions(str(folder), Recipe(j=40, restarts=1), output=str(root / form)))
    return {form: root / form for form in minilm_forms}


def test_the_forms_are_the_same_model(minilm: Path, minilm_forms: dict[str, Path]) -> None:
    reference = hidden_states(minilm)
    for form, folder in minilm_forms.items():
        assert torch.allclose(hidden_states(folder), reference, atol=1e-5), form


def test_every_class_gets_the_same_factors_to_the_last_bit(compressed_forms: dict[str, Path]) -> None:
    bert = factors(compressed_forms["bert"])
    assert {name: tuple(t.shape) for name, t in bert.items()} == {
        "weight": (30522, 40),
        "bases": (5, 40, 384),
        "clusters": (30522,),
    }
    for form in ("distilbert", "roberta"):
        for name, factor in factors(compressed_forms[form]).items():
            assert torch.equal(factor, bert[name]), (form, name)


def test_outputs_equal_those_of_the_expanded_checkpoint(compressed_forms: dict[str, Path], tmp_path: Path) -> None:
    for form, folder in compressed_forms.items():
        expand_checkpoint(ExpandOptions(str(folder), str(tmp_path / form)))
        assert torch.allclose(hidden_states(tmp_path / form), hidden_states(folder), atol=1e-5), form


def test_pipelines_and_sentence_transformers_take_the_folder(
    minilm: Path, compressed_forms: dict[str, Path], tmp_path: Path
) -> None:
    extractor = hf.pipeline("feature-extraction", model=str(compressed_forms["distilbert"]))
    assert len(extractor(SENTENCES[0])[0][0]) == 384
    # From the package itself, whose sentence-transformers modules travel along.
    compress_checkpoint(CompressOptions(str(minilm), Recipe(ratio=0.4, restarts=1), output=str(tmp_path / "st")))
    encoder = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    ours = encoder.encode(SENTENCES, convert_to_tensor=True, normalize_embeddings=True)
    dense = SentenceTransformer(str(minilm), device="cpu").encode(
        SENTENCES, convert_to_tensor=True, normalize_embeddings=True
    )
    assert (ours * dense).sum(1).min() > 0.9
    model = hf.AutoModel.from_pretrained(tmp_path / "st")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "st")
    assert torch.allclose(encode(model, tokenizer, SENTENCES), ours, atol=1e-5)
    encoder.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(again, ours, atol=1e-6)


def test_zero_shot_similarity_survives_forty_percent_off(minilm: Path, glue_dir: str) -> None:
    scores = {score.variant: score for score in probe(minilm, glue_dir, ratio=0.4, k=5)}
    assert scores["dense"].spearman > 86
    projective = scores["projective"]
    assert projective.spearman > scores["dense"].spearman - 1.03
    for baseline in ("svd", "random"):
        assert projective.spearman > scores[baseline].spearman
        assert projective.cosine_to_dense > scores[baseline].cosine_to_dense + 0.02


def test_coded_checkpoints_are_taken_by_pipelines_and_sentence_transformers(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    compress_checkpoint(
        CompressOptions(
            str(minilm), Recipe.parse("projective:k=2:j=200:codes=int8:restarts=1:max_iter=3"), output=str(folder)
        )
    )
    stored = load_file(folder / "model.safetensors")
    table = sum(tensor.nbytes for name, tensor in stored.items() if "word_embeddings." in name)
    assert table < 0.15 * 30522 * 384 * 4
    expand_checkpoint(ExpandOptions(str(folder), str(tmp_path / "dense")))
    assert torch.allclose(hidden_states(tmp_path / "dense"), hidden_states(folder), atol=1e-4)
    extractor = hf.pipeline("feature-extraction", model=str(folder))
    assert len(extractor(SENTENCES[0])[0][0]) == 384
    encoder = SentenceTransformer(str(folder), device="cpu")
    ours = encoder.encode(SENTENCES, convert_to_tensor=True, normalize_embeddings=True)
    dense = SentenceTransformer(str(minilm), device="cpu").encode(
        SENTENCES, convert_to_tensor=True, normalize_embeddings=True
    )
    assert (ours * dense).sum(1).min() > 0.8
    encoder.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(again, ours, atol=1e-5)
