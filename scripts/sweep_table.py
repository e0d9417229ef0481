"""The tables of docs/models.md, from what scripts/sweep_models.py found."""

from collections import Counter, defaultdict
from typing import Any

Results = dict[str, dict[str, Any]]

_ORDER = ("works", "partly refused", "refused", "fails", "not built", "no tokens")
_HEADS = {"compressed": "output layer compressed", "dense": "output layer stays dense", "none": "no output layer"}

# In docs/models.md what stands below it is written anew.
HEADING = "## Every class of transformers"
_INTRODUCTION = (
    HEADING
    + """

What `scripts/sweep_models.py` found on transformers {version}, with a tiny random model of every class that embeds
tokens and stands in transformers' tables of models, language models and multimodal ones: {counts}.

A class works where all of this does, with float factors, with `--bits` and with `--codes int8`: compression, with its
look at how the model reads the table; saving and loading, which give the same outputs, twice; `expand`, which gives
nearly the same; and a step of training that reaches the table. Heads for classification and the like have bodies that
stand here. A model that is tiny and random says nothing of accuracy.

Whatever stands here, `compress` looks at the model itself: before anything is fitted, and again when the table is, it
compares what the model makes of a few sequences with what it makes of the same rows in a dense table, and refuses one
that answers otherwise. `--no-twin-check` goes without.
"""
)


def counts(results: Results) -> str:
    """How many classes came to what."""
    found = Counter(result["verdict"] for result in results.values())
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in _ORDER if found[verdict])


def page(results: Results, version: str) -> str:
    """The end of docs/models.md, from its heading on."""
    shown = {name: result for name, result in results.items() if result["verdict"] != "no tokens"}
    parts = [_INTRODUCTION.format(version=version, counts=counts(shown)), "### Works\n", *_works(shown)]
    parts += ["\n### Refused by name\n", *_why(shown, ("refused", "partly refused"))]
    if any(result["verdict"] == "fails" for result in shown.values()):
        parts += ["\n### Fails\n", *_why(shown, ("fails",))]
    parts += ["\n### Not built\n", "No tiny model came of the configuration alone; these may work.\n"]
    return "\n".join([*parts, *_why(shown, ("not built",))]) + "\n"


def _works(results: Results) -> list[str]:
    by_type: dict[str, list[str]] = defaultdict(list)
    for name, result in sorted(results.items()):
        if result["verdict"] == "works":
            by_type[result["model_type"]].append(f"{name} ({result['head']})")
    told = "; ".join(f"{word}: {text}" for word, text in _HEADS.items())
    rows = [f"| {model_type} | {', '.join(names)} |" for model_type, names in sorted(by_type.items())]
    return [f"In parentheses what became of the output layer ({told}).\n", "| type | classes |", "|---|---|", *rows]


def _why(results: Results, verdicts: tuple[str, ...]) -> list[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, result in sorted(results.items()):
        if result["verdict"] in verdicts:
            by_reason[result["why"].replace(name, "it").replace("|", "/")].append(name)
    rows = [f"| {', '.join(names)} | {why} |" for why, names in sorted(by_reason.items(), key=lambda own: own[1])]
    return ["| classes | why |", "|---|---|", *rows]
