"""The plot of a plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from projclust.report.plan_plot import plot_plan
from projclust.results.reports import PlanReport, PlanRow


def row(recipe: str, size: int, error: float, cosine: float | None) -> PlanRow:
    return PlanRow(
        recipe=recipe,
        bytes=size,
        bits_per_weight=size / 100,
        relative_error=error,
        weighted_relative_error=error,
        cosine=cosine,
        kl=None,
        predicted=True,
        seconds=0.0,
    )


def plan(probed: bool) -> PlanReport:
    rows = [
        row("projective-float32", 1200, 0.1, 0.99),
        row("int4", 450, 0.01, 1.0),  # no loss at all is no number on a logarithmic axis
        row("auto", 200, 0.05, 0.98),
        row("auto", 100, 0.0, 0.9),
        row("pq", 100, 0.3, None),
    ]
    return PlanReport(
        model="some-lab/some-model",
        n=100,
        d=8,
        bytes_dense=3200,
        weights="wordfreq",
        metric="none",
        seed=0,
        probe=probed,
        rows=rows if probed else [replace(each, cosine=None) for each in rows],
        pick=None,
        notes=[],
        total_seconds=0.0,
        versions={},
        output=None,
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("probed", [False, True])
def test_the_same_plan_gives_the_same_file(tmp_path: Path, probed: bool) -> None:
    plot_plan(tmp_path / "a.png", plan(probed))
    plot_plan(tmp_path / "b.png", plan(probed))
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b.png").read_bytes()
    # A second panel makes it wider.
    assert int.from_bytes(content[16:20], "big") == 120 * (12 if probed else 7.5)
