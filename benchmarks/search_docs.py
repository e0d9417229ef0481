"""A search in technical text: the first line of a docstring is to find the rest of it among others, nothing trained.

    python benchmarks/search_docs.py MODEL COMPRESSED... [--texts 2000]

The docstrings are those of functions and classes of numpy, scipy, scikit-learn, torch, pandas and matplotlib, as
installed: summaries of 5 to 30 words, and the first 60 words of at least 30 that follow. Search, options and what is
printed are those of search_verses.py; searches go from the summary to the rest, and back.
"""

import ast
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from search_verses import Pair, main

PACKAGES = ("numpy", "scipy", "sklearn", "torch", "pandas", "matplotlib")
SUMMARY_WORDS, REST_WORDS = range(5, 31), (30, 60)


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a program's functions and classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in others' strings
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            yield text


def pair_of(docstring: str) -> Pair | None:
    """The summary and what follows it, without marks of reStructuredText; None where either is too short or long."""
    summary, _, rest = re.sub(r"\n\s*\n", "\0", docstring, count=1).partition("\0")
    words = re.sub(r"[`*:\\]+", " ", rest).split()
    if len(summary.split()) not in SUMMARY_WORDS or len(words) < REST_WORDS[0]:
        return None
    return " ".join(summary.split()), " ".join(words[: REST_WORDS[1]])


def docstring_pairs() -> list[Pair]:
    """Summaries and what follows them, from the packages as they are installed, their tests left out."""
    pairs: dict[Pair, None] = {}
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise SystemExit(f"error: {name} is not installed: pip install {name}")
        root = Path(found.origin).parent
        for path in sorted(root.rglob("*.py")):
            if "test" not in str(path.relative_to(root)):
                texts = docstrings(path.read_text(encoding="utf-8"))
                pairs |= dict.fromkeys(pair for text in texts if (pair := pair_of(text)))
    return list(pairs)


if __name__ == "__main__":
    main(
        __doc__,
        "texts",
        2000,
        docstring_pairs,
        "of docstrings, each one's summary and what follows it sought by each other",
    )
