"""Rows of results.json as `projclust glue-eval` writes them, with made-up scores."""

import math
import random
from collections.abc import Iterable
from typing import Any

from projclust.glue.tasks import GLUE as GLUE_TASKS
from projclust.results.rows import Row

METRICS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "mnli": ("accuracy_matched", "accuracy_mismatched"),
}
VALIDATION_ROWS = {"cola": 1043, "sst2": 872, "mrpc": 408, "stsb": 1500, "qqp": 40430, "mnli": 19647, "qnli": 5463, "rte": 277, "wnli": 71, "demo": 200}  # fmt: skip
GLUE = GLUE_TASKS
DENSE_BYTES = 46_881_792


def make_row(
    task: str = "cola",
    variant: str = "dense",
    seed: int = 0,
    before: float | None = None,
    after: float | None = 50.0,
    ratio: float = 0.4,
    **changes: Any,
) -> Row:
    """One cell; `before` and `after` are scores in points, `ratio` is the part of the embedding taken off.

    Anything else is set by its field's name.
    """
    dense = variant == "dense"
    kept = 1.0 if dense else 1 - ratio
    j = None if dense else round(384 * kept)
    k = None if dense else 1 if variant == "svd" else 5
    fields: dict[str, Any] = {
        "task": task,
        "variant": variant,
        "label": "dense" if dense else f"{variant}, k={k}, j={j}",
        "method": variant,
        "k": k,
        "j": j,
        "affine": None if dense else False,
        "codes": None if dense else "float32",
        "seed": seed,
        "status": "done",
        "reason": None,
        "metrics_before": _metrics(task, before),
        "metrics_after": _metrics(task, after),
        "score_before": before,
        "score_after": after,
        "training_score": None,
        "chosen": None,
        "params_dense": DENSE_BYTES // 4,
        "params_stored": round(DENSE_BYTES * kept / 4),
        "compression_rate": 1 - kept,
        "bytes_dense": DENSE_BYTES,
        "bytes_stored": round(DENSE_BYTES * kept),
        "bits_per_weight": 32 * kept,
        "model_bytes_dense": 90_860_000,
        "model_bytes_stored": 90_860_000 - round(DENSE_BYTES * (1 - kept)),
        "relative_error": 0.0 if dense else 0.3 * ratio,
        "training_rows": 5000,
        "validation_rows": VALIDATION_ROWS[task],
        "limit": None,
        "glue": "projclust" if task == "demo" else "nyu-mll/glue",
        "model": "some-lab/some-model",
        "model_sha256": "ab" * 32,
        "protocol": "paper",
        "settings": {"epochs": 3, "learning_rate": 3e-05, "batch_size": 32},
        "settings_hash": "",
        "seconds": {"baseline": 12.5, "fit": 2.0, "train": 10.0, "evaluate": 1.5},
        "device": "cpu",
        "processes": 1,
        "versions": {"projclust": "0.1.0", "torch": "2.13.0"},
    }
    fields |= changes
    if not fields["settings_hash"]:
        names = ("task", "label", "seed", "settings", "limit", "model_sha256", "protocol")
        fields["settings_hash"] = repr([fields[name] for name in names])
    return Row(**fields)


def _metrics(task: str, score: float | None) -> dict[str, float] | None:
    """Metrics whose mean is `score` points."""
    if score is None:
        return None
    names = METRICS.get(task, ("accuracy",))
    spread = 0.01 if len(names) == 2 else 0.0
    return dict(zip(names, (score / 100 + spread, score / 100 - spread), strict=False))


def diverged(row: Row) -> Row:
    """The same cell, had its training diverged."""
    lost = {"metrics_before": None, "metrics_after": None, "score_before": None, "score_after": None}
    reason = "the loss became nan within the first 40 of 500 training steps"
    return Row(**{**vars(row), **lost, "status": "diverged", "reason": reason})


def many_rows(
    tasks: Iterable[str] = GLUE,
    variants: Iterable[str] = ("dense", "projective", "svd", "random"),
    seeds: Iterable[int] = (0, 1, 2),
    ratios: Iterable[float] = (0.4,),
    **changes: Any,
) -> list[Row]:
    """Rows with scores that look real: variants lose a few points, fewer after further training."""
    noise = random.Random(0)
    rows = []
    for number, task in enumerate(tasks):
        for variant in variants:
            for ratio in (0.0,) if variant == "dense" else ratios:
                worse = {"dense": 0.0, "projective": 1.0, "svd": 1.8, "random": 2.2}.get(variant, 1.0)
                loss = worse * math.expm1(3 * ratio)
                for seed in seeds:
                    level = 60 + 4 * number + noise.gauss(0, 0.4)
                    before, after = level - loss, level + 0.5 - loss / 3 + noise.gauss(0, 0.3)
                    rows.append(make_row(task, variant, seed, before, after, ratio, **changes))
    return rows
