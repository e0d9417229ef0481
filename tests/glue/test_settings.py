from typing import Any

import pytest

from projclust.errors import ProjclustError
from projclust.glue.settings import Settings, parse_per_task, settings_for, without_settings


def test_settings_of_single_tasks_win_over_the_common_ones() -> None:
    per_task = parse_per_task(("cola:learning-rate=1e-4:epochs=4", "sst2:limit=100", "cola:warmup=0.2"))
    assert per_task == {"cola": {"learning_rate": 1e-4, "epochs": 4, "warmup": 0.2}, "sst2": {"limit": 100}}
    cola = settings_for("cola", Settings(epochs=2, batch_size=16), per_task)
    assert (cola.learning_rate, cola.epochs, cola.batch_size, cola.limit) == (1e-4, 4, 16, None)
    assert settings_for("mrpc", Settings(), per_task) == Settings()


def test_settings_can_be_taken_out_of_those_of_a_task() -> None:
    texts = ("cola:learning-rate=1e-4:limit=5", "sst2:limit=3")
    assert without_settings(texts, {"limit"}) == ("cola:learning-rate=1e-4", "sst2")
    assert parse_per_task(without_settings(texts, {"limit", "learning_rate"})) == {}
    assert without_settings(texts, set()) == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colla:epochs=3", "there is no task 'colla'"),
        ("cola:epochs", "name=value"),
        ("cola:mixed-precision=bf16", "name=value"),
        ("cola:epochs=many", "epochs must be a number, not 'many'"),
        ("cola:epochs=1.5", "epochs must be a number, not '1.5'"),
    ],
)
def test_mistakes_in_the_settings_of_a_task(text: str, message: str) -> None:
    with pytest.raises(ProjclustError) as caught:
        parse_per_task((text,))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1),
        ("baseline_epochs", -1),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("max_length", 3),
        ("limit", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("max_grad_norm", float("inf")),
        ("warmup", 1.5),
        ("weight_decay", -0.1),
    ],
)
def test_impossible_settings_are_refused_by_the_name_of_their_flag(name: str, value: Any) -> None:
    with pytest.raises(ProjclustError, match=f"`{name}`"):
        Settings(**{name: value})
