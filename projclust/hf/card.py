"""The model card (README.md) of the folders projclust writes."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

_PAPER = "https://arxiv.org/abs/2010.04290"
_INHERITED = ("language", "license", "license_name", "license_link", "pipeline_tag", "datasets")


def compressed_card(report: dict[str, Any], source: Path, model_class: str) -> str:
    """The card of a compressed checkpoint: what was compressed, how much, the error, how to load it, the paper."""
    heading = f"{_short_name(report['model'])}, embedding compressed by projclust"
    rows = [
        ("table", f"{report['n']:,} rows x {report['d']} columns"),
        ("method", _method_line(report)),
        ("parameters", f"{report['params_dense']:,} -> {report['params_stored']:,}"),
        ("compression rate (cluster ids not counted)", f"{report['compression_rate']:.2%}"),
        ("bytes of the embedding in the file", f"{report['bytes_dense']:,} -> {report['bytes_stored']:,}"),
        ("bytes of all weights", f"{report['model_bytes_dense']:,} -> {report['model_bytes_stored']:,}"),
        ("stored bits per original weight", f"{report['bits_per_weight']:.2f} ({report['codes']})"),
        ("relative squared error", f"{report['relative_error']:.4f}"),
        ("SVD of equal size would have", f"{report['same_size_svd']['weighted_relative_error']:.4f}"),
    ]
    if report["weights"] != "uniform":
        rows[-1:-1] = [("relative squared error, weighted", f"{report['weighted_relative_error']:.4f}")]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
    dense = "".join(
        f"\n`{part['name']}` ({part['bytes']:,} bytes) stays dense: {part['reason']}.\n"
        for part in report["dense_parts"]
    )
    return f"""{_front_matter(report["model"], source, "quantized")}
# {heading}

The word embedding of {_linked(report["model"])} was factorised: each row lies in one of {report["k"]} subspaces of
dimension {report["j"]} and is stored as its {report["j"]} coordinates there.
No other weight was changed, and nothing was trained.

{table}
{dense}
The error says how close the table is to the original one, not how accurate the model is on a task: measure that
before use.

## Load it

```python
import projclust  # pip install projclust
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("path/or/repo")
tokenizer = AutoTokenizer.from_pretrained("path/or/repo")
```

`projclust expand path/or/repo -o dense` writes a stock checkpoint that needs no projclust.

## Source

[Deep Learning Meets Projective Clustering]({_PAPER}), Maalouf, Lang, Rus and Feldman, ICLR 2021.
Made with projclust {report["versions"]["projclust"]}; projclust_report.json has every figure,
projclust_options.yaml the options to make it again.
"""


def expanded_card(model: str, source: Path) -> str:
    """The card of a checkpoint that was made dense again."""
    return f"""{_front_matter(None, source, None)}
# {_short_name(model)}, expanded

A stock checkpoint made by `projclust expand` from the compressed one in {_linked(model)}: the rebuilt table is
dense again, with the compression's approximation in it. It needs no projclust to load.
"""


def _front_matter(base_model: str | None, source: Path, relation: str | None) -> str:
    inherited = _source_metadata(source)
    fields = {name: inherited[name] for name in _INHERITED if inherited.get(name) is not None}
    if base_model is not None and not Path(base_model).exists():  # a Hub id; a local path would mean nothing there
        fields |= {"base_model": base_model, "base_model_relation": relation}
    data = ModelCardData(library_name="transformers", tags=["projclust"], **fields)
    return f"---\n{data.to_yaml()}\n---\n"


def _source_metadata(source: Path) -> dict[str, Any]:
    """The metadata of the source's own card; a card that cannot be read has none."""
    try:
        return ModelCard.load(source / "README.md").data.to_dict()
    except Exception:  # no card, or YAML of any kind of damage: nothing of ours depends on it
        return {}


def _method_line(report: dict[str, Any]) -> str:
    kind = "affine" if report["affine"] else "linear"
    line = {
        "projective": f"projective clustering, k={report['k']} {kind} subspaces of rank j={report['j']}",
        "svd": f"truncated SVD of rank {report['j']}",
        "random": f"random partition (a control), k={report['k']} groups, rank j={report['j']}",
    }[report["method"]]
    return f"{line}, row weights {report['weights']}, seed {report['seed']}"


def _short_name(model: str) -> str:
    return Path(model).name or model


def _linked(model: str) -> str:
    return f"`{_short_name(model)}`" if Path(model).exists() else f"[{model}](https://huggingface.co/{model})"
