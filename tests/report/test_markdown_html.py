"""report.md and report.html: what a reader is told, and that data cannot add markup."""

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
        "--variants dense,projective:k=5:j=230,svd:j=230,random:k=5:j=230 --limit 100"
    )


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
    assert len(named) == 8
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
    assert "script" not in found.tags
    assert "table" in found.tags
    assert any("default-src 'none'" in (value or "") for _, value in found.attributes)
    assert "width=device-width" in str(found.attributes)
    assert "prefers-color-scheme: dark" in found.text


def test_several_models_are_sections() -> None:
    text = markdown([*many_rows(["cola"]), *many_rows(["cola"], model="a/second", model_sha256="cd" * 32)])
    assert text.startswith("# What compressing the embedding costs: 2 models and protocols\n")
    assert [line for line in text.split("\n") if line.startswith("## ")] == [
        "## second, protocol paper (trained, compressed, trained further)",
        "## some-model, protocol paper (trained, compressed, trained further)",
    ]
