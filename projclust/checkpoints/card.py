"""The model card (README.md) of the folders projclust writes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from projclust.checkpoints.source import CONFIG, is_static, read_json
from projclust.errors import CheckpointError
from projclust.onnx_export.needs import Body, outputs_of
from projclust.results.reports import CompressReport, ExportReport, StoredGraph, script_text

CARD_FILE = "README.md"

_PAPER = "https://arxiv.org/abs/2010.04290"
_GRAPHS_BEGIN, _GRAPHS_END = "<!-- projclust export: begin -->", "<!-- projclust export: end -->"
_INHERITED = ("language", "license", "license_name", "license_link", "pipeline_tag", "datasets")
# Tags of a source that tell which files lie there.
_TAGS_OF_FILES = {
    "safetensors",
    "pytorch",
    "tf",
    "jax",
    "rust",
    "onnx",
    "openvino",
    "coreml",
    "gguf",
    "transformers.js",
}


def compressed_card(report: CompressReport, source: Path, model_class: str, base_model: str | None = None) -> str:
    """The card of a compressed checkpoint: what was compressed, how much, the error, how to load it, the paper.

    `base_model` is the Hub id of what was compressed, where the report names a folder.
    """
    auto = report.codes == "auto"  # the paper's rate says little of such codes
    rate = [] if auto else [("compression rate (cluster ids not counted)", f"{report.compression_rate:.2%}")]
    weighted = [("relative squared error, weighted", f"{report.weighted_relative_error:.4f}")]
    svd, by_script = report.same_size_svd, script_text(report.errors_by_script)
    assert svd is not None
    rows = [
        ("table", f"{report.n:,} rows x {report.d} columns"),
        ("method", _method_line(report)),
        ("parameters", f"{report.params_dense:,} -> {report.params_stored:,}" + " that have a code" * auto),
        *rate,
        ("bytes of the embedding in the file", f"{report.bytes_dense:,} -> {report.bytes_stored:,}"),
        ("bytes of all weights", f"{report.model_bytes_dense:,} -> {report.model_bytes_stored:,}"),
        *_body_rows(report),
        ("stored bits per original weight", f"{report.bits_per_weight:.2f} ({report.codes})"),
        ("relative squared error", f"{report.relative_error:.4f}"),
        *(weighted if report.weights != "uniform" else []),
        *([] if by_script is None else [("the same by script", by_script)]),
        *_outputs_rows(report),
        (
            f"SVD of equal size ({svd.codes}) would have" + ", weighted" * (report.weights != "uniform"),
            f"{svd.weighted_relative_error:.4f}",
        ),
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
    dense = "".join(
        f"\n`{part.name}` ({part.bytes:,} bytes) stays dense: {part.reason}.\n" for part in report.dense_parts
    )
    return f"""{_front_matter(source, base_model or report.model)}
# {_heading(report.model)}, embedding compressed by projclust

{_what_was_done(report, base_model or report.model)}
{_what_of_the_body(report)}

{table}
{dense}
The error says how close the table is to the original one, not how accurate the model is on a task: measure that
before use.

## Load it

```python
import projclust  # pip install projclust
{_how_to_load(source, model_class)}
```

Programs that load models themselves, such as `transformers serve`, lm-eval and mteb, load this one where projclust is
installed beside them. `projclust expand path/or/repo -o dense` writes a stock checkpoint that needs no projclust.

## Source

[Deep Learning Meets Projective Clustering]({_PAPER}), Maalouf, Lang, Rus and Feldman, ICLR 2021.
Made with projclust {report.versions["projclust"]}; projclust_report.json has every figure,
projclust_options.yaml the options to make it again.
"""


def _how_to_load(source: Path, model_class: str) -> str:
    if is_static(read_json(source / CONFIG)):
        return """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/or/repo")
vectors = model.encode(["A sentence."])"""
    return f"""from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("path/or/repo")
tokenizer = AutoTokenizer.from_pretrained("path/or/repo")"""


def _outputs_rows(report: CompressReport) -> list[tuple[str, str]]:
    if report.output_kl is not None:
        return [("KL divergence of the next token, on text that the model made up", f"{report.output_kl:.4f}")]
    if report.output_cosine is not None:
        return [("cosine of the outputs to the dense model's, on random tokens", f"{report.output_cosine:.4f}")]
    return []


def _body_rows(report: CompressReport) -> list[tuple[str, str]]:
    if report.body is None:
        return []
    size = f"{report.body_bytes_dense:,} -> {report.body_bytes_stored:,}"
    return [
        (f"bytes of the body's weights ({report.body})", size),
        ("relative squared error of the body's weights", f"{report.body_relative_error:.2g}"),
    ]


def _what_of_the_body(report: CompressReport) -> str:
    if report.dtype is not None:
        return f"The other weights are stored as {report.dtype}. Nothing was trained."
    if report.body is None:
        return "No other weight was changed, and nothing was trained."
    return (
        f"The other matrices are stored as {report.body} and become floats again when they are loaded. "
        "Nothing was trained."
    )


def expanded_card(model: str, source: Path) -> str:
    """The card of a checkpoint that was made dense again."""
    return f"""{_front_matter(source)}
# {_heading(model)}, expanded

A stock checkpoint made by `projclust expand` from the compressed one in {_linked(model)}: the rebuilt table is
dense again, with the compression's approximation in it. It needs no projclust to load.
"""


def exported_card(report: ExportReport, source: Path) -> str:
    """The card of a folder of ONNX files: what they are, and how Python and JavaScript load them."""
    rows = "\n".join(f"| `{file.path}` | {file.body} | {file.bytes:,} |" for file in report.files)
    smallest = report.files[-1]
    return f"""{_front_matter(source, report.model, library="transformers.js", tags=["onnx"])}
# {_short_name(report.model)}, as ONNX

Made by `projclust export` of {_linked(report.model)}. The word embedding is as it was there, coded if it was coded: its
rows are decoded by operations of the graph. Nothing here needs projclust.

| file | weights beside the table | bytes |
| --- | --- | ---: |
{rows}

Inputs: {", ".join(report.inputs)}; output: {", ".join(report.outputs)}; any batch and any length; opset {report.opset}.

## Load it

{_load_lines(report.task, smallest.path, smallest.body, is_sentence_encoder(source))}"""


def with_graphs(card: str, kind: str, graphs: Sequence[StoredGraph], sentences: bool) -> str:
    """The card of a checkpoint whose folder also holds graphs: what they are, and how they load without projclust.

    The section takes the place of an earlier one; else it comes before the sources. `kind` is the model's class, and
    `sentences` says whether sentence-transformers loads it.
    """
    smallest = min(graphs, key=lambda graph: graph.bytes)
    rows = "\n".join(f"| `{graph.path}` | {graph.body or ''} | {graph.bytes:,} |" for graph in graphs)
    made = outputs_of(kind)
    load = "" if made is None else "\n" + _load_lines(made[0], smallest.path, smallest.body, sentences)
    section = f"""{_GRAPHS_BEGIN}
## Load it without projclust, as ONNX

| file | weights beside the table | bytes |
| --- | --- | ---: |
{rows}
{load}{_GRAPHS_END}
"""
    earlier = re.compile(f"\n?{re.escape(_GRAPHS_BEGIN)}.*?{re.escape(_GRAPHS_END)}\n?", re.DOTALL)
    card = earlier.sub("", card)
    before, sources, after = card.rpartition("\n## Source\n")
    return f"{before}\n{section}{sources}{after}" if sources else f"{card.rstrip()}\n\n{section}"


def is_sentence_encoder(folder: Path) -> bool:
    """Whether sentence-transformers loads a model."""
    return (folder / "modules.json").is_file()


def _load_lines(task: str, path: str, body: str | None, sentences: bool) -> str:
    """How Python and, where its pipelines can, JavaScript load a graph."""
    return f"""```python
{_python_lines(task, path, sentences)}
```
{_javascript_lines(task, body)}"""


def _python_lines(task: str, path: str, sentences: bool) -> str:
    if sentences and task == "feature-extraction":
        file = f'model_kwargs={{"file_name": "{path}"}}'
        return f"""from sentence_transformers import SentenceTransformer  # pip install sentence-transformers[onnx]
model = SentenceTransformer("path/or/repo", backend="onnx", {file})
vectors = model.encode(["A sentence."])"""
    return f"""import onnxruntime, transformers
session = onnxruntime.InferenceSession("path/{path}")
tokens = transformers.AutoTokenizer.from_pretrained("path")(["A sentence."], return_tensors="np")
outputs = session.run(None, {{given.name: tokens[given.name] for given in session.get_inputs()}})"""


def _javascript_lines(task: str, body: str | None) -> str:
    if task == "text-generation":
        return """
The graph reads a whole text and gives the logits of every token. It keeps no keys and values: pipelines that generate
text, of transformers.js and optimum, need graphs that do.
"""
    if body is None:  # a name that is none of transformers.js's
        return ""
    more = ', { pooling: "mean", normalize: true }' if task == "feature-extraction" else ""
    return f"""
```js
import {{ pipeline }} from "@huggingface/transformers";
const run = await pipeline("{task}", "path/or/repo", {{ dtype: "{Body(body).dtype}" }});
const result = await run("A sentence."{more});
```
"""


@dataclass(frozen=True)
class Measurement:
    """One metric, a mean over seeds and a fraction of 1, on the validation rows of a GLUE task.

    `task` is named as in nyu-mll/glue, `metric` as in results.json. `standard_error` is None for one seed. The rows are
    those of all validation splits, of each at most `limit`, where there is one. `fine_tuned` says whether the
    checkpoint was first trained on the task.
    """

    task: str
    metric: str
    mean: float
    standard_error: float | None
    seeds: int
    validation_rows: int
    limit: int | None
    fine_tuned: bool


# By the name in results.json: the Hub's name of the metric, ours, and the split.
_METRICS = {
    "matthews_correlation": ("matthews_correlation", "Matthews correlation", "validation"),
    "accuracy": ("accuracy", "accuracy", "validation"),
    "accuracy_matched": ("accuracy", "accuracy, matched", "validation_matched"),
    "accuracy_mismatched": ("accuracy", "accuracy, mismatched", "validation_mismatched"),
    "f1": ("f1", "F1", "validation"),
    "pearson": ("pearson", "Pearson correlation", "validation"),
    "spearmanr": ("spearmanr", "Spearman correlation", "validation"),
}
_MEASURED_BY = "(projclust glue-eval)"  # ends the names of our results, so that they are found again
_BEGIN, _END = "<!-- projclust glue-eval: begin -->", "<!-- projclust glue-eval: end -->"


def measured_card(card: str, name: str, measurements: Sequence[Measurement]) -> str:
    """A card, which may be empty, with measured accuracy as a section and in its metadata (model-index).

    The metadata, which are read without the section, hold only what was measured of these very weights on all rows.
    Both take the place of what was measured before; the rest stays as it is. `name` is what to call the model where the
    metadata have no name. (The Hub's newer form, files in `.eval_results/`, is for data sets that it lists as
    benchmarks, with the names of their tasks; GLUE's is none that we know of.)
    """
    head = re.match(r"---\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", card, re.DOTALL | re.MULTILINE)
    body = card[head.end() :] if head else card
    section = _section(measurements)
    earlier = re.compile(f"{re.escape(_BEGIN)}(?:(?!{re.escape(_BEGIN)}).)*?{re.escape(_END)}", re.DOTALL)
    body, found = earlier.subn(lambda _: section, body, count=1)
    if not found:
        body = f"{body.rstrip()}\n\n{section}\n"
    return f"---\n{_with_results(head.group(1) if head else '', name, measurements)}---\n{body}"


def _with_results(front_matter: str, name: str, measurements: Sequence[Measurement]) -> str:
    """The YAML with our evaluation results in its model-index, beside those of others."""
    try:
        metadata = yaml.safe_load(front_matter) or {}
        index = metadata.pop("model-index", None)
        name, known = model_index_to_eval_results(index) if index else (name, [])
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"the metadata of {CARD_FILE} is damaged: {' '.join(str(error).split())}") from None
    others = [result for result in known if not str(result.metric_name).endswith(_MEASURED_BY)]
    ours = [_eval_result(own) for own in measurements if own.limit is None and not own.fine_tuned]
    found: dict[str, Any] = {}
    if others or ours:
        found["model-index"] = eval_results_to_model_index(name, [*others, *ours])
    block = yaml.safe_dump(found, sort_keys=False, allow_unicode=True) if found else ""
    # The other lines are kept as they are, comments too, unless the index is written in a way not foreseen here.
    rest = re.sub(r"^model-index:.*\n(?:(?:[ \t-].*)?\n)*", "", front_matter, flags=re.MULTILINE)
    try:
        if (yaml.safe_load(rest + block) or {}) == {**metadata, **found}:
            return rest + block
    except yaml.YAMLError:
        pass
    return (yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True) if metadata else "") + block


def _eval_result(measurement: Measurement) -> EvalResult:
    kind, name, split = _METRICS[measurement.metric]
    seeds = "1 seed" if measurement.seeds == 1 else f"mean of {measurement.seeds} seeds"
    return EvalResult(
        task_type="text-classification",
        dataset_type="nyu-mll/glue",
        dataset_name=f"GLUE {measurement.task.upper()}",
        dataset_config=measurement.task,
        dataset_split=split,
        metric_type=kind,
        metric_value=round(measurement.mean, 4),
        metric_name=f"{name}, {seeds}, {measurement.validation_rows:,} validation rows {_MEASURED_BY}",
    )


def _training(measurement: Measurement) -> str:
    return "after fine-tuning on the task" if measurement.fine_tuned else "without fine-tuning"


def _section(measurements: Sequence[Measurement]) -> str:
    lines = []
    for measurement in measurements:
        metric = _METRICS[measurement.metric][1]
        limit = "" if measurement.limit is None else f" (limited to {measurement.limit:,} rows of a split)"
        error = "" if measurement.standard_error is None else f" ± {measurement.standard_error:.4f}"
        lines.append(
            f"| {measurement.task.upper()}{limit} | {metric} | {measurement.mean:.4f}{error} | "
            f"{measurement.seeds} | {measurement.validation_rows:,} | {_training(measurement)} |"
        )
    table = "\n".join(lines)
    return f"""{_BEGIN}
## Measured accuracy

By `projclust glue-eval`, on validation rows of GLUE: the mean over seeds ± its standard error, without the error where
there is one seed. Figures after fine-tuning are of copies fine-tuned on the task, not of the weights in this folder:
these, and figures of limited rows, are not in the metadata.

| task | metric | value | seeds | validation rows | measured |
| --- | --- | --- | --- | --- | --- |
{table}

{_END}"""


def _front_matter(
    source: Path, base_model: str | None = None, library: str | None = None, tags: Sequence[str] = ()
) -> str:
    """The metadata of a card: the source's own, as far as they hold of what was made of it."""
    try:
        inherited = ModelCard.load(source / CARD_FILE).data.to_dict()
    except Exception:  # no card, or YAML of any kind of damage: nothing of ours depends on it
        inherited = {}
    fields = {name: inherited[name] for name in _INHERITED if inherited.get(name) is not None}
    if base_model is not None and not Path(base_model).exists():  # a Hub id; a local path would mean nothing there
        fields |= {"base_model": base_model, "base_model_relation": "quantized"}
    known = inherited.get("tags")
    listed = known if isinstance(known, list) else []
    kept = [tag for tag in listed if isinstance(tag, str) and tag not in _TAGS_OF_FILES]
    own = library or _library(source, inherited.get("library_name"))
    data = ModelCardData(library_name=own, tags=list(dict.fromkeys([*kept, "projclust", *tags])), **fields)
    return f"---\n{data.to_yaml()}\n---\n"


def _library(source: Path, named: object) -> str:
    """What loads a checkpoint: what its source's card says, else what its files are for."""
    if named in ("transformers", "sentence-transformers"):
        return str(named)
    has_config = (source / CONFIG).is_file()
    sentences = is_sentence_encoder(source) or (has_config and is_static(read_json(source / CONFIG)))
    return "sentence-transformers" if sentences else "transformers"


def _what_was_done(report: CompressReport, source: str) -> str:
    model = _linked(source)
    ranks, row_bytes = report.ranks or [], report.row_bytes or []
    if report.codes == "auto":
        by = "length" if report.weights == "uniform" else "how much they matter"
        return (
            f"The word embedding of {model} was coded: its rows were classed by {by} into {report.k} classes, and\n"
            f"each coordinate of a class got as many bits as it deserves, {min(row_bytes)} to "
            f"{max(row_bytes)} bytes a row."
        )
    least, most = min(ranks), max(ranks)
    dimension = f"dimension {most}" if least == most else f"dimensions {least} to {most}"
    return (
        f"The word embedding of {model} was factorised: each row lies in one of {report.k} subspaces of\n"
        f"{dimension} and is stored as its{f' {most}' * (least == most)} coordinates there."
    )


def _method_line(report: CompressReport) -> str:
    if report.codes == "auto":
        metric = "by the model's gradients" if report.metric == "model" else "as they are"
        weights = report.weights
        if report.weights_exponent is not None:
            weights += f" (to the power {report.weights_exponent:g})"
        return f"projclust codes auto, errors measured {metric}, row weights {weights}, seed {report.seed}"
    kind = "affine" if report.affine else "linear"
    ranks = report.ranks or []
    least, most = min(ranks), max(ranks)
    rank = f"rank j={report.j}" if least == most else f"adaptive ranks {least} to {most} (budget of j={report.j})"
    line = {
        "projective": f"projective clustering, k={report.k} {kind} subspaces of {rank}",
        "svd": f"truncated SVD of rank {report.j}",
        "random": f"random partition (a control), k={report.k} groups, rank j={report.j}",
    }[report.method]
    if report.loss != "l2":
        line += f", loss {report.loss}"
    return f"{line}, row weights {report.weights}, seed {report.seed}"


def _short_name(model: str) -> str:
    return "".join(character if character.isprintable() else " " for character in Path(model).name or model)


def _heading(model: str) -> str:
    """The name as text of a heading: what Markdown would take for more is escaped."""
    return re.sub(r"([\\`*<>|#&]|[\[\]])", r"\\\1", _short_name(model))


def _linked(model: str) -> str:
    if Path(model).exists():
        return f"`{_short_name(model).replace('`', chr(39))}`"
    return f"[{model}](https://huggingface.co/{model})"
