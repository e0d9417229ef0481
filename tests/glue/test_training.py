import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projclust.checkpoints.classifier import load_classifier
from projclust.checkpoints.load import load_tokenizer
from projclust.errors import ProjclustError
from projclust.glue import training
from projclust.glue.batches import EncodedRows, encode
from projclust.glue.data import Rows
from projclust.glue.settings import Settings
from projclust.glue.tasks import TASKS
from projclust.glue.training import Diverged, check_batch_size, logits, make_accelerator, points, score, train
from projclust.hf.compression import compress_model

DEMO = TASKS["demo"]


@pytest.fixture
def model(tiny_classifier: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    return load_classifier(tiny_classifier, DEMO.labels).model


@pytest.fixture
def fit(tokenizer: PreTrainedTokenizerBase, demo_rows: EncodedRows, accelerator: Accelerator) -> Any:
    def call(model: PreTrainedModel, epochs: int = 1, seed: int = 0, **settings: Any) -> list[tuple[int, int, float]]:
        steps: list[tuple[int, int, float]] = []
        train(
            model,
            tokenizer,
            demo_rows,
            epochs,
            seed,
            Settings(**{"learning_rate": 3e-3, **settings}),
            accelerator,
            lambda *step: steps.append(step),
        )
        return steps

    return call


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [None, {"k": 3, "j": 8, "restarts": 1}, {"bits": 8.0, "metric": "none"}],
)
def test_it_learns_its_training_rows(
    model: PreTrainedModel,
    fit: Any,
    demo_rows: EncodedRows,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    options: dict[str, Any] | None,
) -> None:
    if options is not None:
        compress_model(model, **options)
    before = score(DEMO, model, tokenizer, {"": demo_rows}, accelerator)
    # The step of an int or the spread of a coordinate is no larger than the entries of the table themselves.
    coded = options is not None and "bits" in options
    steps = fit(model, epochs=20 if coded else 12, learning_rate=2e-3 if coded else 1e-2)
    after = score(DEMO, model, tokenizer, {"": demo_rows}, accelerator)
    assert before["accuracy"] < 0.65
    # Codes do not learn, so the rows of words cannot go wherever they like.
    assert after["accuracy"] > (0.75 if coded else 0.95)
    assert steps[-1][2] < steps[0][2] / (1.2 if coded else 2)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(model: PreTrainedModel, fit: Any) -> None:
    results = []
    for seed in (0, 0, 1):
        trained = copy.deepcopy(model)
        fit(trained, seed=seed)
        results.append(state(trained))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])
    assert not equal(results[0], state(model))


@pytest.mark.parametrize("parts", [1, 4])
def test_every_batch_is_a_step_and_the_learning_rate_rises_then_falls_to_zero(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demo_rows: EncodedRows,
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
) -> None:
    rates: list[float] = []
    original = transformers.get_linear_schedule_with_warmup

    def watched(optimizer: Any, *arguments: Any) -> Any:
        schedule = original(optimizer, *arguments)
        step = schedule.step

        def record(*inner: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])
            step(*inner)

        schedule.step = record
        schedule.last = lambda: optimizer.param_groups[0]["lr"]
        return schedule

    monkeypatch.setattr(training, "get_linear_schedule_with_warmup", watched)
    settings = Settings(learning_rate=1e-3, warmup=0.25, gradient_accumulation=parts)
    train(model, tokenizer, demo_rows, 2, 0, settings, make_accelerator(settings, cpu=True))
    assert len(rates) == 2 * math.ceil(400 / 32)
    peak = rates.index(max(rates))
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(1e-3, rel=0.2)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-4


def test_a_frozen_embedding_stays_and_the_rest_learns(model: PreTrainedModel, fit: Any) -> None:
    compress_model(model, k=3, j=5, restarts=1)
    before = state(model)
    fit(model, freeze_embedding=True)
    after = state(model)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (
            "word_embeddings" in name or tensor.dtype.is_floating_point is False
        ), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    fit(model)
    assert not torch.equal(
        state(model)["bert.embeddings.word_embeddings.weight"], after["bert.embeddings.word_embeddings.weight"]
    )
    assert not torch.equal(
        state(model)["bert.embeddings.word_embeddings.bases"], after["bert.embeddings.word_embeddings.bases"]
    )


@pytest.mark.parametrize("freeze", [False, True])
def test_codes_stay_and_what_is_beside_them_learns(model: PreTrainedModel, fit: Any, freeze: bool) -> None:
    compress_model(model, bits=8.0, metric="none")
    before = state(model)
    fit(model, freeze_embedding=freeze)
    after = state(model)
    changed = {
        name.rpartition(".")[2]
        for name in before
        if "word_embeddings" in name and not torch.equal(before[name], after[name])
    }
    assert changed <= {"deviations", "gains", "means", "mean_scales", "decoder", "decoder_scales"}
    # Deviations themselves are in sixteenths of an octave, which so few steps need not cross; their gains follow.
    assert ({"gains", "means", "decoder_scales"} <= changed) if not freeze else not changed
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}


def test_only_matrices_decay(model: PreTrainedModel) -> None:
    decayed, rest = training._parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() == 2 for parameter in decayed["params"])  # type: ignore[attr-defined]
    assert all(parameter.dim() == 1 for parameter in rest["params"])  # type: ignore[attr-defined]


def test_a_loss_that_is_no_number_stops_the_training(model: PreTrainedModel, fit: Any) -> None:
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) within the first \d+ of 130 training steps"):
        fit(model, epochs=10, learning_rate=1e30, warmup=0.0)


def test_outputs_that_are_no_numbers_are_no_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demo_rows: EncodedRows, accelerator: Accelerator
) -> None:
    with torch.no_grad():
        model.classifier.bias[0] = math.nan
    with pytest.raises(Diverged, match="outputs"):
        score(DEMO, model, tokenizer, {"": demo_rows}, accelerator)


def test_outputs_are_those_of_single_rows_in_their_order(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demo_rows: EncodedRows, accelerator: Accelerator
) -> None:
    found = logits(model, tokenizer, demo_rows, accelerator)
    assert found.shape == (400, 2)
    for row in (0, 17, 399):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([demo_rows.features["input_ids"][row]])).logits[0]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-5)


def test_metrics_of_several_splits_carry_their_names(
    tiny_classifier: Path, tokenizer: PreTrainedTokenizerBase, demo_rows: EncodedRows, accelerator: Accelerator
) -> None:
    mnli = load_classifier(tiny_classifier, TASKS["mnli"].labels).model
    found = score(TASKS["mnli"], mnli, tokenizer, {"_matched": demo_rows, "_mismatched": demo_rows}, accelerator)
    assert list(found) == ["accuracy_matched", "accuracy_mismatched"]
    assert points({"accuracy_matched": 0.5, "accuracy_mismatched": 0.7}) == pytest.approx(60)


def test_every_training_in_fp16_starts_with_a_loss_scale_of_its_own(
    model: PreTrainedModel, fit: Any, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = torch.amp.GradScaler("cpu", init_scale=2.0**-4)  # what a diverged training leaves
    monkeypatch.setattr(accelerator, "scaler", used)
    fit(model)
    assert accelerator.scaler is not used
    assert accelerator.scaler.get_scale() >= 1.0


def test_a_launcher_that_asks_for_other_accumulation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ProjclustError, match="the launcher asks for 4 steps of gradient accumulation"):
        make_accelerator(Settings(), cpu=True)


def test_an_empty_text_has_a_token(tiny_classifier: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    bare = copy.deepcopy(tokenizer)
    assert encode(Rows(([""],), [0]), bare, 16).lengths() == [2]  # [CLS] and [SEP]
    gpt2 = load_tokenizer(tiny_classifier)
    gpt2.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    assert encode(Rows((["", "good"],), [0, 1]), gpt2, 16).lengths() == [1, 1]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    check_batch_size(Settings(batch_size=32, gradient_accumulation=2), 4)
    with pytest.raises(ProjclustError, match="--batch-size 30 .* --gradient-accumulation 2 times 4 processes"):
        check_batch_size(Settings(batch_size=30, gradient_accumulation=2), 4)
