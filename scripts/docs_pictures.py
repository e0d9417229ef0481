"""The pictures of docs/how-it-works.md: subspaces, classes of rows, the trellis, and what its codes leave.

    projclust compress MiniLM --bits 0.5
    python scripts/docs_pictures.py MiniLM-projclust docs/images

The classes are those of the checkpoint; the subspaces are fitted to points made up here; the trellis is drawn with 8
states, where the real ones have 256; the distortions are those that scripts/train_codebooks.py measured.
"""

import argparse
import math
from itertools import product
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import projclust  # noqa: F401, lets AutoModel read compressed checkpoints
from projclust import ProjectiveClustering
from projclust.coding.codebooks import KINDS, SCALAR, TRELLIS, is_integer
from projclust.report.plots import BLUE, GREEN, GREY, ORANGE, save

STATE_BITS, STEPS = 3, 7


def draw_subspaces(path: Path) -> None:
    """Points near three lines: one subspace against three."""
    generator = torch.Generator().manual_seed(1)
    angles = torch.tensor([0.25, 1.15, 2.3]).repeat_interleave(70)
    along = torch.randn(len(angles), generator=generator)
    points = along[:, None] * torch.stack([angles.cos(), angles.sin()], 1)
    points += 0.06 * torch.randn(points.shape, generator=generator)
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    for axes, k in zip(figure.subplots(1, 2), (1, 3), strict=True):
        fitted = ProjectiveClustering(k, 1, seed=0).fit(points)
        error = fitted.inertia_ / float(points.square().sum())
        for c in range(k):
            colour = (BLUE, ORANGE, GREEN)[c]
            x, y = (3 * fitted.components_[c, 0]).tolist()
            axes.plot([-x, x], [-y, y], color=colour, linewidth=1.5)
            own = points[fitted.labels_ == c]
            axes.scatter(own[:, 0], own[:, 1], s=12, color=colour, alpha=0.7, linewidths=0)
        name = "one line, as SVD has it" if k == 1 else "three lines, a point belongs to one of them"
        axes.set(title=f"{name}\nrelative error {error:.3f}", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
        axes.axis("off")
    save(figure, path)


def draw_classes(path: Path, folder: Path) -> None:
    """How many bits each coordinate of each class has, and some words of the classes."""
    table = AutoModel.from_pretrained(folder).get_input_embeddings()
    rates = torch.tensor([kind.rate for kind in KINDS])
    bits = rates[table.side_tables().kinds.long()]  # (C, r)
    classes = table.addresses().classes
    words = {row: token for token, row in AutoTokenizer.from_pretrained(folder).get_vocab().items()}
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(bits, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="bits of a coordinate", location="left", shrink=0.8, pad=0.01)
    labels = []
    for number in range(len(bits)):
        rows = (classes == number).nonzero().flatten().tolist()
        some = [
            words[row] for row in rows[:: max(1, len(rows) // 200)] if words[row].isascii() and words[row].isalpha()
        ]
        each = f"{float(bits[number].sum()):,.0f} bits"
        labels.append(f"{len(rows):,} rows of {each}: {', '.join(some[len(some) // 2 :][:3])}")
    axes.yaxis.tick_right()
    axes.set_yticks(range(len(bits)), labels, fontsize=8)
    axes.set(
        xlabel="coordinate, strongest direction first", title="The classes of MiniLM's rows at half a bit a weight"
    )
    save(figure, path)


def draw_trellis(path: Path) -> None:
    """A path through a small trellis beside what it codes, and what the real codes leave by their bits."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_path(left)
    for kinds, name, colour, marker in (
        (TRELLIS, "trellis codes, 256 states", BLUE, "o"),
        (SCALAR, "scalar codes (Lloyd and Max)", ORANGE, "s"),
    ):
        own = [KINDS[number] for number in kinds if not is_integer(number)]
        rates, left_over = [kind.rate for kind in own], [kind.distortion for kind in own]
        right.plot(rates, left_over, marker, color=colour, label=name, linestyle="-")
    rates = [0.05 * step for step in range(81)]
    right.plot(rates, [4.0**-rate for rate in rates], color=GREY, linestyle="--", label="no code can do better")
    right.set(yscale="log", xlabel="bits of a coordinate", ylabel="squared error left of a variance of 1")
    right.set_title("What the codes leave of Gaussian numbers")
    right.grid(alpha=0.3)
    right.legend()
    save(figure, path)


def _draw_path(axes: Axes) -> None:
    states = 1 << STATE_BITS
    order = [state * 3 % states for state in range(states)]  # neighbours in number far from each other in value
    value = [math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * (place + 0.5) / states - 1))) for place in order]
    wanted = torch.randn(STEPS, generator=torch.Generator().manual_seed(54)).tolist()

    def follow(path: tuple[int, ...]) -> list[int]:
        found = [0]
        for bit in path:
            found.append((found[-1] << 1 | bit) % states)
        return found[1:]

    paths = list(product((0, 1), repeat=STEPS))
    costs = [
        sum((value[state] - number) ** 2 for state, number in zip(follow(path), wanted, strict=True)) for path in paths
    ]
    best = paths[costs.index(min(costs))]
    for step in range(STEPS - 1):
        for state in range(states):
            for bit in (0, 1):
                following = (state << 1 | bit) % states
                axes.plot([step, step + 1], [value[state], value[following]], color=GREY, alpha=0.25, linewidth=0.7)
    for step in range(STEPS):
        axes.scatter([step] * states, value, s=14, color=GREY, zorder=2)
    axes.plot(range(STEPS), [value[state] for state in follow(best)], "o-", color=BLUE, zorder=3, label="the best path")
    axes.plot(range(STEPS), wanted, "x", color=ORANGE, markersize=9, markeredgewidth=2, zorder=4, label="coordinates")
    axes.set_xticks(range(STEPS), [f"bit {bit}" for bit in best])
    axes.set(ylabel="value of a state", title="One bit a coordinate, and yet 8 values: the last 3 bits name one")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder that `projclust compress --bits` wrote")
    parser.add_argument("output", type=Path, help="the folder of the pictures")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    draw_subspaces(arguments.output / "subspaces.png")
    draw_classes(arguments.output / "classes.png", arguments.checkpoint)
    draw_trellis(arguments.output / "trellis.png")


if __name__ == "__main__":
    main()
