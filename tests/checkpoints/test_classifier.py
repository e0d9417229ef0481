"""Checkpoints loaded as sequence classifiers."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.save import fingerprint
from projclust.errors import ProjclustError

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def saved(folder: Path, **settings: object) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**SHAPE, max_position_embeddings=20, **settings))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("names", [None, ("NEGATIVE", "POSITIVE"), ("negative", "positive"), ("LABEL_0", "LABEL_1")])
def test_a_head_for_these_labels_is_kept(tmp_path: Path, names: tuple[str, str] | None) -> None:
    settings = {} if names is None else {"id2label": dict(enumerate(names))}
    model = saved(tmp_path, **settings)
    loaded = load_classifier(tmp_path, ("negative", "positive"))
    assert loaded.head_is_stored
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}


def test_a_head_for_other_labels_is_not_taken_for_these(tmp_path: Path) -> None:
    saved(tmp_path, id2label={0: "good", 1: "bad"})
    assert not load_classifier(tmp_path, ("negative", "positive")).head_is_stored
    three = load_classifier(tmp_path, ("entailment", "neutral", "contradiction"))
    assert not three.head_is_stored
    assert three.model.classifier.weight.shape == (3, 16)
    score = load_classifier(tmp_path, ())
    assert (score.model.config.num_labels, score.model.config.problem_type) == (1, "regression")


NLI = ("entailment", "neutral", "contradiction")
TOKENS = {"input_ids": torch.tensor([[3, 4, 8], [6, 7, 8]])}


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "GPT2", "Bart"])
def test_a_head_with_its_labels_in_another_order_is_put_in_the_tasks(tmp_path: Path, kind: str) -> None:
    """As roberta-large-mnli and bart-large-mnli have them."""
    shape = {**SHAPE, "decoder_layers": 1, "encoder_layers": 1, "pad_token_id": 0, "eos_token_id": 8, "n_layers": 1}
    names = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    config = getattr(hf, f"{kind}Config")(**shape, num_labels=3, id2label=names)
    model = getattr(hf, f"{kind}ForSequenceClassification")(config).eval()
    model.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path, NLI)
    assert loaded.head_is_stored
    assert loaded.is_named
    assert loaded.model.config.id2label == dict(enumerate(NLI))
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(**TOKENS).logits, model(**TOKENS).logits[:, [2, 1, 0]])


def test_labels_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    saved(tmp_path, id2label={0: "Not Entailment", 1: "ENTAILMENT"})
    assert load_classifier(tmp_path, ("not_entailment", "entailment")).is_named


def test_numbers_alone_do_not_name_labels(tmp_path: Path) -> None:
    saved(tmp_path, num_labels=3)
    found = load_classifier(tmp_path, NLI)
    assert (found.head_is_stored, found.is_named) == (True, False)


def test_a_head_whose_last_layer_cannot_be_told_is_refused(tmp_path: Path) -> None:
    config = hf.RobertaConfig(**{**SHAPE, "hidden_size": 2}, id2label={0: "positive", 1: "negative"})
    hf.RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ProjclustError, match="which layer of RobertaForSequenceClassification puts them out"):
        load_classifier(tmp_path, ("negative", "positive"))


def test_half_precision_and_tuples_become_float32_and_objects(tmp_path: Path) -> None:
    saved(tmp_path, return_dict=False).half().save_pretrained(tmp_path)
    model = load_classifier(tmp_path, ("negative", "positive")).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2)


def test_a_model_without_a_classifier_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "vit", "architectures": ["ViTModel"]}
    saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProjclustError, match="no sequence classifier for models of type vit"):
        load_classifier(tmp_path, ("a", "b"))


def test_the_fingerprint_is_of_what_the_model_is_made_of(tmp_path: Path) -> None:
    saved(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "projclust_report.json").write_text("{}")
    assert fingerprint(tmp_path) == before
    (tmp_path / "vocab.txt").write_text("word")
    after = fingerprint(tmp_path)
    assert after != before
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert fingerprint(tmp_path) not in (before, after)
