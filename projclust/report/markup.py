"""Pieces of GitHub-flavoured Markdown to which data can add no markup."""

import re
from collections.abc import Sequence

from projclust.report.phrases import plain

# Around what a page shows on demand; `html_report` knows these lines.
DETAILS_END = "</details>"


def details_begin(title: str) -> str:
    """The lines before what is shown on demand."""
    return f"<details>\n<summary>{title}</summary>"


def escaped(text: str) -> str:
    """Text from a file that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>|&~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain(text))


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *lines))
