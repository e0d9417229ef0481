"""The official GLUE metrics, computed here so that nothing needs to be downloaded."""

import tempfile
import warnings
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from projclust.glue.tasks import TASKS, Task


class GlueMetric(evaluate.Metric):
    """The metrics of one task as `evaluate.load("glue", task)` has them, as fractions of 1.

    A correlation with predictions that are all the same is 0.
    """

    def __init__(self, task: str, **kwargs: Any) -> None:
        self.task: Task = TASKS[task]
        # Where it makes a folder without anything to put there: a home may be read-only.
        self._folder = tempfile.TemporaryDirectory(prefix="projclust-")
        super().__init__(config_name=task, keep_in_memory=True, cache_dir=self._folder.name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("int64" if self.task.labels else "float64")
        return evaluate.MetricInfo(
            description="The official metrics of a GLUE task.",
            citation="Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform, ICLR 2019",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        given, wanted = np.asarray(predictions), np.asarray(references)
        return {name: _METRICS[name](given, wanted) for name in self.task.metrics}


def _correlation(statistic: Any, given: Any, wanted: Any) -> float:
    if len(given) < 2 or np.ptp(given) == 0 or np.ptp(wanted) == 0:
        return 0.0
    return float(statistic(given, wanted).statistic)


def _matthews(given: Any, wanted: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny samples may have a single class
        return float(matthews_corrcoef(wanted, given))


_METRICS = {
    "accuracy": lambda given, wanted: float((given == wanted).mean()),
    "f1": lambda given, wanted: float(f1_score(wanted, given, zero_division=0.0)),
    "matthews_correlation": _matthews,
    "pearson": lambda given, wanted: _correlation(pearsonr, given, wanted),
    "spearmanr": lambda given, wanted: _correlation(spearmanr, given, wanted),
}
