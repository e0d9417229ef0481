"""Plots: what is drawn, by the functions that settle it; and that the files are the same every time."""

from pathlib import Path
from typing import Any

import pytest
from results_samples import DENSE_BYTES, diverged, make_row, many_rows

from projclust.report import plots
from projclust.report.accuracy_plots import Panel, Point, drop_panels, error_panels, plot_drops, plot_errors
from projclust.report.write import write_report
from projclust.results.reports import CompressReport, SameSizeSvd
from projclust.results.rows import Row
from projclust.results.summary import Summary, summarize


def summary(rows: list[Row]) -> Summary:
    (result,) = summarize(rows)
    return result


def size(png: bytes | None) -> tuple[int, int]:
    """Width and height from the header of a PNG."""
    assert png is not None
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_a_panel_has_the_drops_and_what_dense_gained() -> None:
    rows = [make_row("cola", "dense", seed, 50.0, 52.0) for seed in (0, 1)]
    rows += [make_row("cola", "svd", 0, 45.0, 51.0), make_row("cola", "svd", 1, 43.0, 49.0)]
    (panel,) = drop_panels(summary(rows))
    label, smaller = "svd, k=1, j=230", DENSE_BYTES / round(0.6 * DENSE_BYTES)
    assert panel == Panel(
        "CoLA",
        [Point("svd", label, smaller, "before", 6.0, 1.0), Point("svd", label, smaller, "after", 2.0, 1.0)],
        dense_change=-2.0,
    )


def test_there_is_a_panel_for_every_task_and_the_average() -> None:
    panels = drop_panels(summary(many_rows()))
    assert [panel.title for panel in panels][:3] == ["CoLA", "SST-2", "MRPC"]
    assert panels[-1].title == "average of 9 tasks"
    assert len(panels) == 10
    assert {len(panel.points) for panel in panels} == {6}


def test_titles_say_what_is_limited_and_what_is_no_glue() -> None:
    titles = [panel.title for panel in drop_panels(summary(many_rows(["cola", "rte", "demo"], limit=50)))]
    assert titles == [
        "CoLA (limited to 50 rows)",
        "RTE (limited to 50 rows)",
        "demo, demonstration data, not GLUE (limited to 50 rows)",
        "average of 2 tasks (limited rows)",
    ]


def test_diverged_seeds_are_counted() -> None:
    rows = many_rows(["cola", "rte"])
    panels = drop_panels(summary([*rows[:4], diverged(rows[4]), *rows[5:]]))
    assert [panel.diverged for panel in panels] == [1, 0, 0]


def test_kinds_of_a_method_are_series_of_their_own() -> None:
    rows = [make_row("cola", "dense"), make_row("cola", "projective"), make_row("cola", "projective", ratio=0.8)]
    rows.append(make_row("cola", "projective", label="affine", affine=True, codes="float16"))
    rows.append(make_row("cola", "best", label="best", method="projective"))
    (panel,) = drop_panels(summary(rows))
    assert {point.series for point in panel.points} == {"projective", "projective, affine, float16", "best"}


def test_a_choice_is_drawn_at_its_own_size_on_every_task() -> None:
    rows = [make_row(task, "dense") for task in ("cola", "rte")]
    rows += [make_row("cola", "best", label="best", ratio=0.5), make_row("rte", "best", label="best", ratio=0.75)]
    sizes = [panel.points[0].times_smaller for panel in drop_panels(summary(rows))]
    assert sizes == pytest.approx([2.0, 4.0, 1 / 0.375])


def test_errors_are_drawn_where_they_are_known() -> None:
    rows = [make_row("cola", "dense"), make_row("cola", "svd"), make_row("cola", "random", relative_error=None)]
    (panel,) = error_panels(summary(rows))
    assert [(point.label, point.value) for point in panel.points] == [("svd, k=1, j=230", 0.12)]


@pytest.mark.parametrize(
    "rows",
    [
        many_rows(["cola", "rte", "demo"], seeds=(0, 1)),
        many_rows(["rte"], ("dense", "svd"), (0,), limit=200),
        many_rows(["cola"], ratios=(0.2, 0.4, 0.6, 0.8, 0.9)),
        many_rows(["cola"], model="lab/$\\frac{$ 模型_\x1b"),
        many_rows(["cola"], variants=("dense", "projective"), ratios=(0.4, 0.41)),
    ],
    ids=["tasks", "one seed", "sweep", "odd name", "labels"],
)
@pytest.mark.filterwarnings("error")
def test_the_same_results_give_the_same_files(rows: list[Row]) -> None:
    for plot in (plot_drops, plot_errors):
        first = plot(summarize(rows))
        assert min(size(first)) > 300
        assert plot(summarize(rows)) == first


def test_more_groups_make_a_longer_plot() -> None:
    one = many_rows(["cola"])
    two = [*one, *many_rows(["cola"], protocol="pretrained")]
    assert size(plot_drops(summarize(two)))[1] > 1.7 * size(plot_drops(summarize(one)))[1]


def test_a_plot_of_nothing_is_not_written_and_an_old_one_removed(tmp_path: Path) -> None:
    write_report(many_rows(["cola"]), tmp_path)
    files = {"results.json", "report.md", "report.html", "drop.png", "error.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert "](drop.png)" in (tmp_path / "report.md").read_text()
    write_report(many_rows(["cola"], ("compressed",), protocol="as-is"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == files - {"drop.png"}
    assert "](drop.png)" not in (tmp_path / "report.md").read_text()
    write_report([make_row()], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == files - {"drop.png", "error.png"}
    assert "<img" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("ranks", "loss", "errors", "labels"),
    [
        ([4, 4, 4], "l2", [1.0, 0.5], ["these 3 clusters", "SVD (one subspace)", "stored, rank 4"]),
        (
            [2, 4, 9],
            "l2",
            [1.0, 0.5],
            ["these 3 clusters, of equal ranks", "SVD (one subspace)", "stored, ranks 2 to 9"],
        ),
        ([4, 4, 4], "l1", None, ["SVD (one subspace)", "stored, rank 4"]),
        ([4], "l2", [1.0, 0.5], ["one subspace", "stored, rank 4"]),
    ],
)
def test_the_plot_of_a_fit_names_what_was_fitted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ranks: list[int],
    loss: str,
    errors: list[float] | None,
    labels: list[str],
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, target: figures.append(figure))
    report = CompressReport(
        model="some-lab/some-model",
        method="projective",
        k=len(ranks),
        j=4,
        loss=loss,
        affine=False,
        n=100,
        d=8,
        seed=0,
        weights="uniform",
        weights_exponent=None,
        codes="float32",
        metric=None,
        params_dense=800,
        params_stored=400,
        compression_rate=0.5,
        bytes_dense=3200,
        bytes_stored=1600,
        bits_per_weight=16.0,
        weighted_relative_error=0.3,
        ranks=ranks,
        cost_history=[3.0, 2.0],
        restarts=1,
        output="out",
        versions={},
        embedding="embeddings",
        model_bytes_dense=4000,
        model_bytes_stored=2400,
        dense_parts=[],
        same_size_svd=SameSizeSvd(5, "float32", 0.4),
        device="cpu",
    )
    plots.plot_fit(tmp_path / "fit.png", report, errors, [1.0, 0.6])
    left, right = figures[0].axes
    assert left.get_ylabel() == ("weighted squared error" if loss == "l2" else "weighted l1 loss")
    shown = [text.get_text() for text in right.get_legend().get_texts()]
    assert [label for label in shown if "equal size" not in label] == labels
