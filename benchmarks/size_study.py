"""Accuracy on GLUE against bytes of the embedding: our codes, the paper's subspaces and what others do, in one picture.

    python benchmarks/size_study.py MODEL -o OUT --glue-dir path/to/glue [--config configs/minilm_bits.yaml]

Measures what is missing with `projclust glue-eval` (all its options may be given, in a config file or as flags), then
writes to OUT, beside the usual report, `sizes.md`, the table, and `sizes.png`, the plot: points lost against the dense
model, mean over tasks, before and after further training. With `--draw-only` it only draws what was measured, and with
`--without wnli` it leaves tasks out and only prints the table.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from matplotlib import pyplot
from matplotlib.ticker import NullFormatter

from projclust.report.plots import BLUE, GREY, ORANGE
from projclust.results.rows import read_results
from projclust.results.summary import AFTER, BEFORE, STAGES, Summary, Variant, summarize

VARIANTS = (
    "dense,projective:bits=2,projective:bits=1,projective:bits=0.5,projective:bits=0.35,projective:ratio=0.4,"
    "projective:bits=1:codes=int8,svd:bits=1:codes=int4,svd:ratio=0.4,int8,int4,int3,int2,nf4,pq:bits=1,pq:bits=0.5"
)


def series(variant: Variant) -> str:
    """What a line of the plot joins."""
    if variant.codes == "auto":
        return "projclust, codes auto"
    codes = "" if variant.codes in (None, "float32") else f", {variant.codes}"
    match variant.method:
        case "projective":
            return f"k subspaces{codes}"
        case "int8" | "int4" | "int3" | "int2":
            return "integers, groups of 32"
        case method:
            return f"{method}{codes}"


def table(summary: Summary) -> str:
    """The variants by falling size, in Markdown."""
    if not summary.averages:
        raise SystemExit("error: the variants share fewer than two tasks: nothing to average")
    average = summary.averages[0]
    lines = [
        f"Mean over {len(average.tasks)} tasks ({', '.join(average.tasks)}), {len(average.seeds)} seed(s); "
        "points lost against the dense model in the same stage.",
        "",
        "| variant | embedding bytes | smaller | bits a weight | all weights | lost before training | lost after |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for variant in sorted(summary.variants, key=lambda variant: -variant.bytes_stored):
        drops = []
        for stage in STAGES:
            score = average.scores.get(variant.label, {}).get(stage)
            drop = None if score is None or score.drop is None else score.drop
            error = "" if drop is None or drop.standard_error is None else f" ± {drop.standard_error:.2f}"
            drops.append("-" if drop is None else f"{drop.mean:+.2f}{error}")
        lines.append(
            f"| {variant.label} | {variant.bytes_stored:,} | {variant.times_smaller:.1f}x | "
            f"{variant.bits_per_weight:.2f} | {variant.model_bytes_stored / 1e6:.1f} MB | {drops[0]} | {drops[1]} |"
        )
    return "\n".join(lines) + "\n"


def plot(summary: Summary, path: Path) -> None:
    """Points lost against bytes: a panel for each stage."""
    average = summary.averages[0]
    titles = {BEFORE: "as compressed", AFTER: "after further training"}
    measured = [stage for stage in STAGES if any(stage in scores for scores in average.scores.values())]
    size = (6 * len(measured), 4.2)
    figure, grid = pyplot.subplots(1, len(measured), figsize=size, layout="constrained", sharey=True, squeeze=False)
    colours = {"projclust, codes auto": BLUE, "k subspaces": ORANGE}
    markers = iter("s^vDP*X<>h")
    styles: dict[str, tuple[str, str]] = {}
    most = 0.0
    for panel, stage in zip(grid[0], measured, strict=True):
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for variant in summary.variants:
            score = average.scores.get(variant.label, {}).get(stage)
            if score is not None and score.drop is not None:
                point = variant.bytes_stored / 1e6, score.drop.mean, score.drop.standard_error or 0.0
                lines.setdefault(series(variant), []).append(point)
        for name, points in lines.items():
            if name not in styles:
                styles[name] = (colours.get(name, GREY), "o" if name in colours else next(markers))
            colour, marker = styles[name]
            sizes, drops, errors = zip(*sorted(points), strict=True)
            look = {"color": colour, "marker": marker, "linewidth": 1.2, "elinewidth": 0.8}
            panel.errorbar(sizes, drops, errors if any(errors) else None, label=name, **look)
            most = max(most, *map(abs, drops))
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set(title=titles[stage], xlabel="stored bytes of the embedding (MB)", xscale="log")
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_formatter("{x:g}")
        low, high = panel.get_xlim()
        panel.xaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())
    if most > 2:  # losses of many points are not worth the room of tenths
        grid[0][0].set_yscale("symlog", linthresh=1)
        grid[0][0].yaxis.set_major_formatter("{x:g}")
    grid[0][0].set_ylabel(f"points lost, mean of {len(average.tasks)} tasks")
    grid[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="The model to evaluate, as `projclust glue-eval` takes it.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="The folder of the results.")
    parser.add_argument("--variants", default=VARIANTS, help="The variants to measure.")
    parser.add_argument("--draw-only", action="store_true", help="Only draw what was measured before.")
    parser.add_argument("--without", default="", metavar="TASKS", help="Only print the table, without these tasks.")
    arguments, more = parser.parse_known_args()
    if arguments.without:
        rows = read_results(arguments.output / "results.json")
        print(table(summarize(row for row in rows if row.task not in arguments.without.split(","))[0]))
        return
    if not arguments.draw_only:
        command = [sys.executable, "-m", "projclust", "glue-eval", arguments.model, "--variants", arguments.variants]
        subprocess.run([*command, "-o", str(arguments.output), *more], check=True)
    (summary,) = summarize(read_results(arguments.output / "results.json"))
    text = table(summary)
    (arguments.output / "sizes.md").write_text(text, encoding="utf-8")
    plot(summary, arguments.output / "sizes.png")
    print(text)


if __name__ == "__main__":
    main()
