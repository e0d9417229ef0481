"""What compression costs, by table, by plot and by nearest neighbours; a part of scripts/quickstart.sh.

python scripts/quickstart_report.py MINILM_FOLDER OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import projclust  # noqa: F401, lets AutoModel read compressed checkpoints
from projclust import ProjectiveClustering
from projclust.report.plots import BLUE, GREY, ORANGE
from projclust.shapes import FactoredShape

METHODS = {"projective": "projective clustering, k=5", "svd": "SVD", "random": "random partition, k=5"}
WORDS = ("doctor", "piano", "monday", "volcano")
RATIOS = (0.2, 0.4, 0.6, 0.8, 0.9)


def neighbours(table: Tensor, row: int, words: dict[int, str], count: int = 5) -> list[str]:
    """The whole words whose rows have the largest cosine with a row's."""
    ids = torch.tensor(sorted(words))
    unit = torch.nn.functional.normalize(table, dim=1)
    order = (unit[ids] @ unit[row]).argsort(descending=True)
    return [words[int(ids[i])] for i in order[: count + 1] if int(ids[i]) != row][:count]


def smaller_by(ratio: float, n: int, d: int, k: int) -> FactoredShape:
    """The shape of the largest rank that takes this fraction of the parameters off."""
    rank = FactoredShape(n, d, k, 1).largest_rank(lambda shape: shape.compression_rate >= ratio)
    assert rank is not None
    return FactoredShape(n, d, k, rank)


def plot(path: Path, table: Tensor) -> None:
    """Relative error of the three methods against the fraction of parameters removed."""
    n, d = table.shape
    total = float(table.double().square().sum())
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for method, colour, marker in (("svd", ORANGE, "s"), ("random", GREY, "^"), ("projective", BLUE, "o")):
        k = 1 if method == "svd" else 5
        rates, errors = [], []
        for ratio in RATIOS:
            shape = smaller_by(ratio, n, d, k)
            fitted = ProjectiveClustering(k, shape.j, method=method, restarts=2).fit(table)
            rates.append(100 * shape.compression_rate)
            errors.append(fitted.inertia_ / total)
        axes.plot(rates, errors, color=colour, marker=marker, label=METHODS[method])
    axes.set(
        title=f"MiniLM's embedding ({n:,} x {d}), nothing trained",
        xlabel="parameters removed (%)",
        ylabel="relative squared error",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main(minilm: Path, out: Path) -> None:
    """Write report.md and error.png to `out`, and print the report."""
    logging.disable_progress_bar()
    reports: dict[str, dict[str, Any]] = {
        method: json.loads((out / f"minilm-{method}" / "projclust_report.json").read_text())
        for method in (*METHODS, "bits")
    }
    lines = [
        "| MiniLM's embedding | relative error | embedding | all weights |",
        "| --- | ---: | ---: | ---: |",
    ]
    dense = reports["projective"]
    lines.append(f"| dense | 0 | {dense['bytes_dense'] / 1e6:.1f} MB | {dense['model_bytes_dense'] / 1e6:.1f} MB |")
    names = {method: f"40% off: {name}, rank {reports[method]['j']}" for method, name in METHODS.items()}
    for method, name in {**names, "bits": f"{reports['bits']['bits_per_weight']:.2f} bits a weight"}.items():
        report = reports[method]
        sizes = f"{report['bytes_stored'] / 1e6:.1f} MB | {report['model_bytes_stored'] / 1e6:.1f} MB"
        lines.append(f"| {name} | {report['relative_error']:.4f} | {sizes} |")

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    words = {row: token for token, row in tokenizer.get_vocab().items() if token.isalpha() and len(token) > 2}
    tables = {"dense": AutoModel.from_pretrained(minilm).get_input_embeddings().weight.detach()}
    tables["coded"] = AutoModel.from_pretrained(out / "minilm-bits").get_input_embeddings().dense_weight()
    lines += ["", "| word | nearest before | nearest at half a bit a weight |", "| --- | --- | --- |"]
    for word in WORDS:
        row = tokenizer.convert_tokens_to_ids(word)
        before, after = (", ".join(neighbours(table, row, words)) for table in tables.values())
        lines.append(f"| {word} | {before} | {after} |")
    plot(out / "error.png", tables["dense"])
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text + "\n![error against size](error.png)\n", encoding="utf-8")
    print(text)
    print(f"written: {out}/report.md, {out}/error.png and the checkpoints {out}/minilm-*")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
