"""The metrics by hand."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from projclust.glue.metrics import GlueMetric
from projclust.glue.tasks import GLUE


def compute(task: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    return dict(GlueMetric(task).compute(predictions=predictions, references=references))


def test_accuracy() -> None:
    assert compute("sst2", [1, 0, 1, 1], [1, 0, 0, 1]) == {"accuracy": 0.75}
    assert compute("mnli", [2, 1, 0], [2, 0, 0]) == {"accuracy": pytest.approx(2 / 3)}


def test_accuracy_and_f1() -> None:
    # One true positive, one false positive, two false negatives: precision 1/2, recall 1/3.
    expected = {"accuracy": 0.4, "f1": pytest.approx(0.4)}
    assert compute("mrpc", [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]) == expected
    assert compute("qqp", [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]) == expected
    assert compute("mrpc", [0, 0], [0, 0])["f1"] == 0.0


def test_matthews_correlation() -> None:
    # tp 2, tn 1, fp 1, fn 0: (2*1 - 1*0) / sqrt(3 * 2 * 2 * 1).
    assert compute("cola", [1, 1, 0, 1], [1, 1, 0, 0]) == {"matthews_correlation": pytest.approx(2 / math.sqrt(12))}
    assert compute("cola", [1, 1, 1], [1, 0, 1]) == {"matthews_correlation": 0.0}


def test_correlations() -> None:
    # Ranks are equal; Pearson of (1, 2, 3) and (1, 2, 4): 3 / sqrt(2 * 14/3).
    found = compute("stsb", [1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert found == {"pearson": pytest.approx(3 / math.sqrt(28 / 3)), "spearmanr": pytest.approx(1.0)}


def test_predictions_that_are_all_the_same_correlate_with_nothing() -> None:
    assert compute("stsb", [2.5, 2.5, 2.5], [0.0, 1.0, 5.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert compute("stsb", [2.5], [0.0]) == {"pearson": 0.0, "spearmanr": 0.0}


@pytest.mark.parametrize("task", GLUE)
def test_perfect_predictions(task: str) -> None:
    labels = [0, 1, 0, 1, 1]
    assert all(value == pytest.approx(1.0) for value in compute(task, labels, labels).values())


def test_a_home_that_cannot_be_written_to_is_left_alone() -> None:
    code = "from projclust.glue.metrics import GlueMetric\nprint(GlueMetric('rte').compute(predictions=[1], references=[1]))"
    caches = ("XDG_CACHE_HOME", "HF_HOME", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE", "HF_MODULES_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in caches}
    environment["HOME"] = f"{os.devnull}/home"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "{'accuracy': 1.0}\n", result.stderr
