"""report.html: the Markdown report as one file that needs nothing else."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from markdown_it import MarkdownIt
from markdown_it.token import Token

from projclust.report.markup import DETAILS_END, details_begin

# Cells with at least so many letters may take several lines.
_LONG = 40


def html_report(markdown: str, images: Mapping[str, bytes]) -> str:
    """The report as a page that makes no request; the PNG images have their names in the Markdown.

    Its one script, which sorts tables, is named by its hash in the page's policy: whatever the data say, nothing else
    is run or loaded.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    title = "".join(child.content for child in tokens[1].children or [])
    for place, token in enumerate(tokens):
        for child in token.children or []:
            if child.type == "image":
                image = base64.b64encode(images[str(child.attrs["src"])]).decode()
                child.attrs["src"] = f"data:image/png;base64,{image}"
                tokens[place - 1].attrSet("class", "plot")
        if token.type == "inline" and tokens[place - 1].type == "td_open":
            _class_of_cell(tokens[place - 1], token)
    body = parser.renderer.render(_with_details(tokens), parser.options, {})
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    style, script = _part("page.css"), _part("page.js")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}<script>{script}</script>
</body>
</html>
"""


def _part(name: str) -> str:
    return "\n" + (resources.files("projclust.report") / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing may be loaded, and this script alone run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _class_of_cell(cell: Token, content: Token) -> None:
    """Mark a cell: a figure that is more than noise (see `projclust.report.verdict`), or a long text."""
    if found := re.match(r"\*\*([+-])\d", content.content):
        cell.attrSet("class", "worse" if found[1] == "+" else "better")
    elif len(content.content) > _LONG:
        cell.attrSet("class", "text")


def _with_details(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with the lines around what is shown on demand as markup; texts of the data are never such a line."""
    found: list[Token] = []
    for token in tokens:
        found.append(token)
        if token.type == "paragraph_close":
            content = found[-2].content
            begin = re.fullmatch(r"<details>\n<summary>([\w ]+)</summary>", content)
            if content == DETAILS_END or (begin and content == details_begin(begin[1])):
                found[-3:] = [Token("html_block", "", 0, content=f"{content}\n")]
    return found
