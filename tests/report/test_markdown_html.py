"""report.md and report.html: what a reader is told, and that data cannot add markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from results_samples import diverged, make_row, many_rows

from projclust.report.html import html_report
from projclust.report.markdown import markdown_report
from projclust.results.rows import Row
from projclust.results.summary import summarize

PNG = b"\x89PNG not really"


def markdown(rows: list[Row]) -> str:
    return markdown_report(summarize(rows), ["drop.png", "error.png"])


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page(rows: list[Row]) -> Page:
    return Page(html_report(markdown(rows), {"drop.png": PNG, "error.png": PNG}))


def line(text: str, *parts: str) -> str:
    """The one line that holds all parts."""
    (found,) = [line for line in text.split("\n") if all(part in line for part in parts)]
    return found


def test_scores_and_drops_with_their_seeds_and_rows() -> None:
    rows = [make_row("cola", "dense", seed, 50.0 + seed, 60.0 + seed) for seed in (0, 2)]
    rows += [make_row("cola", "svd", seed, 40.0, 58.0) for seed in (0, 2)]
    text = markdown(rows)
    assert "# What compressing the embedding costs: some-model, protocol paper (trained, compressed" in text
    cells = [cell.strip() for cell in line(text, "| svd, k=1, j=230 | 40.00").strip("|").split("|")]
    assert cells == [
        "CoLA, 1,043 validation rows",
        "svd, k=1, j=230",
        "40.00 ± 0.00 (2)",
        "+11.00 ± 1.00 (2)",
        "58.00 ± 0.00 (2)",
        "+3.00 ± 1.00 (2)",
    ]
    assert "| svd, k=1, j=230 | 40.0% | 28.13 | 1.67 | 19.20 | 72.11 | 0.1200 |" in text
    assert "| svd, k=1, j=230 | 0.4000 ± 0.0000 (2) | 0.5800 ± 0.0000 (2) |" in text
    assert "| CoLA | nyu-mll/glue | 5,000 | 1,043 |" in text
    assert "| CoLA | 25.0 | 8.0 | 40.0 | 6.0 |" in text  # the baseline once a seed, the rest for every cell
    assert "| epochs | 3 |" in text
    assert "torch 2.13.0" in text
    assert "one seed" not in text.replace("where there is one seed", "")


def test_the_command_makes_it_again() -> None:
    text = markdown(many_rows(["cola", "rte"], limit=100, codes=None))
    assert line(text, "projclust glue-eval") == (
        "projclust glue-eval some-lab/some-model --tasks cola,rte --seeds 0,1,2 --protocol paper "
        "--variants dense,projective:k=5:j=230,svd:j=230,random:k=5:j=230 "
        "--epochs 3 --learning-rate 3e-05 --batch-size 32 --limit 100"
    )
    assert "projclust_options.yaml" in text  # for rows of an early version do not tell how the subspaces were fitted


def test_the_command_holds_every_setting() -> None:
    settings = {"baseline_epochs": 4, "epochs": 0, "freeze_embedding": True, "mixed_precision": "bf16", "warmup": 0.1}
    options = {"restarts": 2, "weights": "wordfreq:de,en", "revision": "v2"}
    changes: dict[str, Any] = {"settings": settings, "options": options, "glue": "my-glue"}
    rows = many_rows(["cola", "rte"], ("dense",), (0,), **changes)
    rows.append(
        make_row("cola", "projective:ranks=adaptive", 0, 40.0, None, method="projective", codes=None, **changes)
    )
    text = markdown(rows)
    found = line(text, "projclust glue-eval")
    for flags in (
        "--baseline-epochs 4 --epochs 0 --freeze-embedding --mixed-precision bf16 --warmup 0.1",
        "--restarts 2 --weights wordfreq:de,en --revision v2",
        "--glue-dir my-glue",
        "--variants dense,projective:k=5:j=230:ranks=adaptive ",
    ):
        assert flags in found
    assert "projclust_options.yaml" not in text
    as_is = line(markdown(many_rows(["cola"], ("compressed",), protocol="as-is", settings=settings)), "glue-eval some")
    assert "--epochs 0" in as_is
    assert "--baseline-epochs" not in as_is  # which this protocol has none of


def test_settings_of_single_tasks_are_in_the_command() -> None:
    rows = [*many_rows(["cola"], limit=50), *many_rows(["rte"], settings={"epochs": 9, "learning_rate": 3e-05})]
    found = line(markdown(rows), "projclust glue-eval")
    assert found.endswith(
        "--learning-rate 3e-05 --per-task cola:epochs=3:batch-size=32:limit=50 --per-task rte:epochs=9"
    )


def test_rows_that_were_fitted_in_two_ways_have_a_command_each() -> None:
    rows = many_rows(["cola"], ("dense", "projective"), options={})
    rows += many_rows(["cola"], ("svd",), options={"restarts": 3})
    found = [found for found in markdown(rows).split("\n") if found.startswith("projclust glue-eval")]
    assert len(found) == 2
    assert sum("--restarts 3" in command and "svd" in command for command in found) == 1


def test_without_further_training_nothing_says_that_there_was_some() -> None:
    for protocol, kinds in (("paper", ("dense", "svd")), ("as-is", ("compressed",))):
        rows = many_rows(["cola", "rte"], kinds, settings={"baseline_epochs": 3, "epochs": 0}, protocol=protocol)
        untrained: dict[str, Any] = {"score_after": None, "metrics_after": None}
        text = markdown([Row(**{**vars(row), **untrained}) for row in rows])
        assert "trained further" not in text
        assert "then trained" not in text
        assert "before" not in text.replace("compressed before", "")
        assert "without further training" in text


def test_settings_that_differ_between_tasks() -> None:
    rows = [*many_rows(["cola"]), *many_rows(["rte"], settings={"epochs": 9})]
    assert "| epochs | cola: 3, rte: 9 |" in markdown(rows)


def test_the_average_says_what_it_covers() -> None:
    assert "is over all nine tasks of GLUE (CoLA, SST-2, MRPC," in markdown(many_rows())
    some = markdown(many_rows(["cola", "rte"]))
    assert "before and after is over 2 of GLUE's nine tasks (CoLA, RTE) and seeds 0, 1, 2" in some
    assert "| average of 2 tasks | dense |" in some
    assert "No average is shown" in markdown([make_row("cola"), make_row("rte", seed=1)])


def test_limits_are_marked_wherever_the_task_is_named() -> None:
    text = markdown(many_rows(["rte", "cola"], limit=200))
    named = re.findall(r"\bRTE\b.{0,30}", text)
    assert len(named) == 15  # 6 of them in the figures of a plot
    assert all(part.startswith("RTE (limited to 200 rows)") for part in named)
    assert "average of 2 tasks (limited rows)" in text
    assert "cannot be compared with published figures" in text


def test_the_demonstration_is_marked_wherever_it_is_named() -> None:
    text = markdown(many_rows(["demo"]))
    assert text.split("\n")[0].endswith(", on demonstration data, not GLUE")
    for found in text.split("\n"):
        if "demo" in found and "glue-eval" not in found:
            assert "demonstration data, not GLUE" in found
    assert "average" not in text


def test_diverged_cells_are_listed_with_their_reason() -> None:
    rows = many_rows(["cola"])
    text = markdown([diverged(rows[3]), *rows[:3], *rows[4:]])
    assert "(1 diverged)" in line(text, "| projective, k=5, j=230", "±", "CoLA")
    assert "loss became nan" in line(text, "| CoLA | projective, k=5, j=230 | 0 |")
    assert "### Diverged" not in markdown(rows)


def test_one_seed_and_no_dense_are_said() -> None:
    text = markdown(many_rows(["rte"], ("compressed",), seeds=(0,), protocol="as-is"))
    assert "no standard error" in text
    assert "±" not in line(text, "| compressed, k=5, j=230 |", "RTE")
    assert "The dense model was not measured, so no drops are shown." in text
    assert "drop" not in text.replace("no drops", "").replace("drop.png", "")


def test_choices_of_best() -> None:
    best = make_row(variant="best", label="best by training score", method="svd", chosen="svd, j=230")
    assert "| CoLA | 0 | svd, j=230 |" in markdown([make_row(), best])


@pytest.mark.parametrize("key", ["model", "label", "reason", "glue", "device", "variant", "chosen"])
def test_data_adds_no_markup(key: str) -> None:
    evil = "<script>x</script> ![a](http://b/c) [d](http://e) `f` | g & <b> *h* _i_ \\| \n\n# j \x1b[31m http://k"
    shown = "<script>x</script> ![a](http://b/c) [d](http://e) `f` | g & <b> *h* _i_ \\| # j [31m http://k"
    failed: dict[str, Any] = {"status": "diverged", "score_after": None, "metrics_after": None}

    def rows(text: str) -> list[Row]:
        found = [make_row(), make_row(seed=1, **failed), make_row(variant="best", label="best", method="svd")]
        return [Row(**{**vars(row), key: text}) for row in found]

    harmless, page_of_evil = page(rows("harmless")), page(rows(evil))
    assert page_of_evil.tags == harmless.tags
    if key != "variant":  # of which only the name of the method is shown
        assert (shown.rpartition("/")[2] if key == "model" else shown) in page_of_evil.text


def test_the_page_needs_nothing_else() -> None:
    found = page(many_rows(["cola", "rte"]))
    links = [value for name, value in found.attributes if name in ("src", "href")]
    assert len(links) == 2
    assert all(link is not None and link.startswith("data:image/png;base64,iVBORyBub3Q") for link in links)
    assert found.tags.count("script") == 1
    assert "table" in found.tags
    assert any("default-src 'none'" in (value or "") for _, value in found.attributes)
    assert "width=device-width" in str(found.attributes)
    assert "prefers-color-scheme: dark" in found.text


def test_only_the_pages_own_script_runs() -> None:
    text = html_report(markdown(many_rows(["cola"])), {"drop.png": PNG, "error.png": PNG})
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text
    assert "http" not in script


def test_the_page_says_first_what_happened() -> None:
    rows = [make_row(task, "dense", seed, 50.0 + seed, 60.0 + seed) for task in ("cola", "rte") for seed in (0, 1)]
    rows += [make_row(task, "svd", seed, 40.0, 57.0 + seed) for task in ("cola", "rte") for seed in (0, 1)]
    rows += [make_row(task, "random", seed, 40.0, 59.5 + 2 * seed) for task in ("cola", "rte") for seed in (0, 1)]
    text = markdown(rows)
    assert text.split("\n")[2] == (
        "After training, on the average of 2 tasks, against the dense model's 60.50 points: "
        "**svd, k=1, j=230** (embedding 1.67 times smaller) loses 3.00 ± 0.00 points, more than noise; "
        "**random, k=5, j=230** (embedding 1.67 times smaller) differs by 0.00 ± 0.50 points, within the noise "
        "(noise is up to 2 standard errors over the seeds)."
    )
    assert text.split("\n")[4:9] == [
        "| task | dense | svd, k=1, j=230 | random, k=5, j=230 |",
        "| --- | --- | --- | --- |",
        "| CoLA | 60.50 ± 0.50 | **+3.00 ± 0.00** | +0.00 ± 0.50 |",
        "| RTE | 60.50 ± 0.50 | **+3.00 ± 0.00** | +0.00 ± 0.50 |",
        "| average of 2 tasks | 60.50 ± 0.50 | **+3.00 ± 0.00** | +0.00 ± 0.50 |",
    ]
    found = page(rows)
    assert ("class", "worse") in found.attributes
    assert ("class", "better") not in found.attributes


def test_the_verdict_claims_no_more_than_was_measured() -> None:
    def first(rows: list[Row]) -> str:
        return markdown(rows).split("\n")[2]

    one_seed = [make_row(), make_row(variant="svd", after=40.0)]
    assert "loses 10.00 points (there is one seed, so all of it may be chance)" in first(one_seed)
    # Two seeds that agree on one validation row of 200.
    agreed = [
        make_row("demo", kind, seed, None, score) for kind, score in (("dense", 70.5), ("svd", 70.0)) for seed in (0, 1)
    ]
    assert (
        "loses 0.50 ± 0.00 points, within the noise (noise is up to 2 standard errors over the seeds, or one row)"
        in first(agreed)
    )
    assert "what the compression costs is not known" in first([make_row(variant="svd")])
    assert "what the compression costs is not known" in first([make_row()])
    assert "no average" in first([make_row("cola"), make_row("rte", seed=1)])
    assert "every training diverged" in first([diverged(make_row()), diverged(make_row(variant="svd"))])
    many = [make_row(), *(make_row(variant="svd", after=49.0 - k, label=f"v{k}", ratio=k / 10) for k in range(1, 6))]
    assert re.search(
        r"\*\*v1\*\*.* loses 2.00 points; \*\*v5\*\*.* loses 6.00 points; the other 3 lie between", first(many)
    )


def test_every_plot_has_its_figures_as_a_table() -> None:
    rows = [
        make_row("cola", kind, seed, 50.0, score + seed)
        for kind, score in (("dense", 60.0), ("svd", 58.0))
        for seed in (0, 1)
    ]
    found = page(rows)
    assert found.tags.count("details") == found.tags.count("summary") == found.tags.count("img") == 2
    text = markdown(rows)
    assert "| CoLA | svd, k=1, j=230 | 1.67 | after | +2.00 | 0.00 |" in text
    assert "| svd, k=1, j=230 | 1.67 | 0.1200 |" in text


def test_several_models_are_sections() -> None:
    text = markdown([*many_rows(["cola"]), *many_rows(["cola"], model="a/second", model_sha256="cd" * 32)])
    assert text.startswith("# What compressing the embedding costs: 2 models and protocols\n")
    assert [line for line in text.split("\n") if line.startswith("## ")] == [
        "## second, protocol paper (trained, compressed, trained further)",
        "## some-model, protocol paper (trained, compressed, trained further)",
    ]
