"""Means, standard errors and drops against numbers computed by hand."""

import math
from typing import Any

import pytest
from results_samples import diverged, make_row, many_rows

from projclust.results.rows import Row
from projclust.results.summary import Mean, Summary, mean_over_seeds, summarize, summary_json

SVD = "svd, k=1, j=230"


def rows(task: str, variant: str, scores: dict[int, tuple[float | None, float | None]]) -> list[Row]:
    """Rows by seed, with scores before and after."""
    return [make_row(task, variant, seed, before, after) for seed, (before, after) in scores.items()]


def summary(*of_tasks: list[Row]) -> Summary:
    (result,) = summarize([row for part in of_tasks for row in part])
    return result


def close(mean: Mean | None, value: float, error: float | None, seeds: int) -> bool:
    assert mean is not None
    assert mean.seeds == seeds
    assert (mean.standard_error is None) == (error is None)
    assert mean.standard_error == pytest.approx(error)
    assert mean.mean == pytest.approx(value)
    return True


def test_mean_and_standard_error() -> None:
    # Deviations -2, 0, 2: sample variance (4 + 0 + 4) / 2 = 4, standard error 2 / sqrt(3).
    assert close(mean_over_seeds([58.0, 60.0, 62.0]), 60.0, 2 / math.sqrt(3), 3)
    assert close(mean_over_seeds([58.0]), 58.0, None, 1)


def test_drops_are_paired() -> None:
    # The scores spread by 10 points, the differences only by one: 3, 4, 5.
    found = summary(
        rows("cola", "dense", {0: (50.0, 55.0), 1: (60.0, 65.0), 2: (70.0, 75.0)}),
        rows("cola", "svd", {0: (47.0, 55.0), 1: (56.0, 64.0), 2: (65.0, 73.0)}),
    )
    before, after = (found.cells["cola", SVD].scores[stage] for stage in ("before", "after"))
    assert close(before.score, 56.0, 9 / math.sqrt(3), 3)
    assert close(before.drop, 4.0, 1 / math.sqrt(3), 3)
    assert close(after.drop, 1.0, 1 / math.sqrt(3), 3)
    assert found.cells["cola", "dense"].scores["after"].drop is None


def test_only_seeds_that_both_have_are_paired() -> None:
    found = summary(
        rows("cola", "dense", {0: (50.0, 50.0), 1: (None, 60.0), 2: (52.0, 90.0)}),
        rows("cola", "svd", {1: (40.0, 58.0), 2: (50.0, 84.0), 5: (10.0, 10.0)}),
    )
    scores = found.cells["cola", SVD].scores
    assert close(scores["before"].score, 100 / 3, math.sqrt((400 / 9 + 2500 / 9 + 4900 / 9) / 2 / 3), 3)
    assert close(scores["before"].drop, 2.0, None, 1)
    assert close(scores["after"].drop, 4.0, 2.0, 2)  # 2 and 6


def test_diverged_cells_are_counted_and_not_averaged() -> None:
    dense = rows("cola", "dense", {0: (None, 60.0), 1: (None, 62.0)})
    svd = rows("cola", "svd", {0: (None, 50.0), 1: (None, 10.0)})
    found = summary(dense, [svd[0], diverged(svd[1])])
    cell = found.cells["cola", SVD]
    assert cell.diverged == 1
    assert close(cell.scores["after"].score, 50.0, None, 1)
    assert close(cell.scores["after"].drop, 10.0, None, 1)
    # What was scored before its training diverged is no mean's either.
    late = diverged(svd[1])
    late = Row(**{**vars(late), "score_before": 40.0, "metrics_before": {"matthews_correlation": 0.4}})
    assert "before" not in summary(dense, [svd[0], late]).cells["cola", SVD].scores


def test_sizes_come_from_cells_that_did_not_diverge() -> None:
    good, bad = make_row(variant="svd", seed=1), diverged(make_row(variant="svd", seed=0))
    bad = Row(**{**vars(bad), "bytes_stored": bad.bytes_dense, "relative_error": 0.0})
    (variant,) = summary([bad, good]).variants
    assert (variant.bytes_stored, variant.relative_error) == (good.bytes_stored, good.relative_error)
    assert variant.times_smaller == pytest.approx(1 / 0.6)


def test_the_average_is_over_tasks_first_then_over_seeds() -> None:
    found = summary(
        rows("cola", "dense", {0: (None, 50.0), 1: (None, 54.0)}),
        rows("rte", "dense", {0: (None, 70.0), 1: (None, 70.0)}),
        rows("cola", "svd", {0: (None, 40.0), 1: (None, 50.0)}),
        rows("rte", "svd", {0: (None, 66.0), 1: (None, 70.0)}),
    )
    (average,) = found.averages
    assert (average.tasks, average.seeds) == (["cola", "rte"], [0, 1])
    # Dense 60, 62; SVD 53, 60; differences 7, 2.
    assert close(average.scores["dense"]["after"].score, 61.0, 1.0, 2)
    assert close(average.scores[SVD]["after"].score, 56.5, 3.5, 2)
    assert close(average.scores[SVD]["after"].drop, 4.5, 2.5, 2)
    assert set(average.scores[SVD]) == {"after"}


def test_the_average_covers_what_every_variant_has() -> None:
    found = summary(
        rows("cola", "dense", {0: (60.0, 60.0), 1: (60.0, 60.0), 2: (60.0, 60.0)}),
        rows("cola", "svd", {0: (50.0, 50.0), 1: (50.0, None), 2: (50.0, 50.0)}),
        rows("rte", "dense", {0: (60.0, 60.0), 1: (60.0, 60.0), 2: (60.0, 60.0)}),
        rows("rte", "svd", {0: (50.0, 50.0), 1: (50.0, 50.0), 2: (50.0, 50.0)}),
        rows("mnli", "dense", {0: (90.0, 90.0)}),
        rows("demo", "dense", {0: (99.0, 99.0), 1: (99.0, 99.0)}),
        rows("demo", "svd", {0: (99.0, 99.0), 1: (99.0, 99.0)}),
    )
    before, after = found.averages
    assert (before.tasks, before.seeds) == (["cola", "rte"], [0, 1, 2])
    assert (after.tasks, after.seeds) == (["cola", "rte"], [0, 2])
    assert before.scores["dense"]["before"].score.mean == 60.0  # neither MNLI nor the demonstration


def test_more_tasks_win_over_more_seeds() -> None:
    found = summary(
        *(
            rows(task, "dense", dict.fromkeys(range(n), (None, 60.0)))
            for task, n in (("cola", 3), ("rte", 3), ("wnli", 1))
        )
    )
    (average,) = found.averages
    assert (average.tasks, average.seeds) == (["cola", "rte", "wnli"], [0])
    assert average.scores["dense"]["after"].score.standard_error is None


def test_no_average_of_fewer_than_two_tasks_of_glue() -> None:
    assert summary(many_rows(["cola"])).averages == []
    assert summary(many_rows(["cola", "demo"])).averages == []
    assert summary(rows("cola", "dense", {0: (None, 1.0)}), rows("rte", "dense", {1: (None, 1.0)})).averages == []


def test_all_nine_tasks_and_wnli_among_them() -> None:
    (average,) = summary(many_rows()).averages
    assert len(average.tasks) == 9
    assert "wnli" in average.tasks


def test_every_metric_has_its_mean() -> None:
    cell = summary(rows("mrpc", "dense", {0: (None, 80.0), 1: (None, 84.0)})).cells["mrpc", "dense"]
    assert close(cell.metrics["after"]["accuracy"], 0.83, 0.02, 2)
    assert close(cell.metrics["after"]["f1"], 0.81, 0.02, 2)


def test_models_and_protocols_are_apart() -> None:
    parts: list[dict[str, Any]] = [{}, {"protocol": "pretrained"}, {"model_sha256": "cd" * 32, "model": "another"}]
    found = summarize([row for part in parts for row in many_rows(["cola"], limit=None, **part)])
    assert [(s.model, s.protocol) for s in found] == [
        ("another", "paper"),
        ("some-lab/some-model", "paper"),
        ("some-lab/some-model", "pretrained"),
    ]
    assert {len(s.rows) for s in found} == {12}


def test_without_dense_there_are_no_drops() -> None:
    found = summary(many_rows(["cola", "rte"], ("projective", "svd")))
    assert found.dense is None
    scores = [*found.cells["cola", SVD].scores.values(), *found.averages[0].scores[SVD].values()]
    assert len(scores) == 4
    assert all(score.drop is None for score in scores)


def test_a_choice_that_took_the_dense_method_is_not_dense() -> None:
    best = make_row(variant="best", label="best", method="dense")
    assert summary([best]).dense is None


def test_the_json_has_scores_and_drops() -> None:
    found = summary_json(summary(rows("cola", "dense", {0: (None, 60.0)}), rows("cola", "svd", {0: (None, 50.0)})))
    assert found["results"][1] == {
        "task": "cola",
        "label": SVD,
        "diverged": 0,
        "before": None,
        "after": {
            "score": {"mean": 50.0, "standard_error": None, "seeds": 1},
            "drop": {"mean": 10.0, "standard_error": None, "seeds": 1},
        },
    }
    assert found["tasks"] == [{"task": "cola", "demonstration": False, "limit": None, "validation_rows": 1043}]
