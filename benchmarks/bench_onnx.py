"""ONNX files of a sentence encoder: their bytes, what is left of its sentence similarity, and how long they take.

    python benchmarks/bench_onnx.py COMPRESSED --dense FOLDER --glue-dir path/to/glue [--prefix "query: "]

Exports a compressed model with every body, and the dense one in float32 and int8. Prints Spearman's rank correlation
(x 100) between cosines of sentence vectors and the gold scores of the STS-B validation set; the mean cosine of the
vectors to those of the same model in PyTorch; and the median time of a call in onnxruntime with one thread, over that
of the dense float32 graph, which takes its turn beside each of the others. Sentences are 1 of 16 tokens, and 8 of 32.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import torch
from bench_tables import add_glue_option
from datasets import disable_progress_bars, load_dataset
from minilm_forms import minilm_folder
from probe_stsb import encode
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import projclust  # noqa: F401, which lets transformers read compressed checkpoints
from projclust.jobs.export import export_checkpoint
from projclust.jobs.options import ExportOptions

SHAPES, CALLS = ((1, 16), (8, 32)), 30


class Session:
    """A graph as `encode` calls a model."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [given.name for given in self.session.get_inputs()]

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        """The last hidden states; inputs that a tokenizer does not give are zeros."""
        zeros = torch.zeros_like(inputs["input_ids"])
        given = {name: inputs.get(name, zeros).numpy() for name in self.names}
        return SimpleNamespace(last_hidden_state=torch.from_numpy(self.session.run(None, given)[0]))


def ratios(graph: Path, dense: Path) -> list[tuple[float, float]]:
    """Of each shape, the milliseconds of a call, and that over the dense graph's."""
    found = []
    for shape in SHAPES:
        ids = torch.randint(1000, 20000, shape, generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        sessions = Session(graph, 1), Session(dense, 1)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(CALLS):
            for session, own in zip(sessions, times, strict=True):
                start = time.perf_counter()
                session(**inputs)
                own.append(time.perf_counter() - start)
        ours, theirs = map(statistics.median, times)
        found.append((1000 * ours, ours / theirs))
    return found


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Export, measure and print."""
    data = load_dataset(arguments.glue_dir, "stsb", split="validation")
    texts = [arguments.prefix + text for column in ("sentence1", "sentence2") for text in data[column]]
    half = len(texts) // 2
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model)
    sources = {"dense": (arguments.dense, "float32,int8"), "coded": (arguments.model, "float32,int8,int4")}
    for name, (source, body) in sources.items():
        export_checkpoint(ExportOptions(str(source), output=str(folder / name), body=body))
    base = folder / "dense" / "onnx" / "model.onnx"
    print("| model | file | bytes | STS-B | cosine to PyTorch | 1 x 16 ms | to dense | 8 x 32 ms | to dense |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (source, _) in sources.items():
        reference = encode(AutoModel.from_pretrained(source, dtype=torch.float32).eval(), tokenizer, texts)
        for graph in sorted((folder / name / "onnx").iterdir(), key=lambda path: -path.stat().st_size):
            vectors = encode(Session(graph, 0), tokenizer, texts)
            cosines = (vectors[:half] * vectors[half:]).sum(1)
            score = 100 * float(spearmanr(cosines.tolist(), list(data["label"])).statistic)
            times = " | ".join(f"{own:.1f} | {ratio:.2f}" for own, ratio in ratios(graph, base))
            same = float((vectors * reference).sum(1).mean())
            print(
                f"| {name} | {graph.name} | {graph.stat().st_size:,} | {score:.2f} | {same:.4f} | {times} |", flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_glue_option(parser)
    parser.add_argument("model", type=Path, help="The folder of a compressed sentence encoder.")
    parser.add_argument("--dense", type=Path, default=None, help="That of the dense one (the packaged MiniLM).")
    parser.add_argument("--prefix", default="", help="What stands before each sentence.")
    parsed = parser.parse_args()
    parsed.dense = parsed.dense or minilm_folder()
    logging.disable_progress_bar()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        main(parsed, Path(place))
