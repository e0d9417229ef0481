"""The pages of docs/: the messages that they explain exist, links lead somewhere, the notebooks run; one version."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from run_notebooks import NOTEBOOKS, ran

import projclust

ROOT = Path(__file__).parents[1]
QUESTIONS = ROOT / "docs" / "questions.md"


def texts_of_the_package() -> Iterator[str]:
    """The texts in the code, as the command line shows them, with … for what is put in."""
    for path in Path(projclust.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            yield re.sub(r"`([a-z_]+)`", lambda found: f"--{found.group(1).replace('_', '-')}", text)


def explained() -> list[str]:
    """The messages in the first columns of the tables."""
    return re.findall(r"^\| `(.+?)` \|", QUESTIONS.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_message_that_is_explained_is_one_of_ours() -> None:
    texts = "\n".join(texts_of_the_package())
    messages = explained()
    assert len(messages) > 40
    unknown = [
        part
        for message in messages
        for part in message.split("…")
        if len(part.strip()) > 3 and part.strip() not in texts
    ]
    assert not unknown


def anchors(page: Path) -> set[str]:
    """The names that the headings of a page get."""
    found = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_the_repositorys_own_pages_lead_somewhere(name: str) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else ROOT / name
        if link.startswith(("http://", "https://")):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_every_extra_is_told() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.M))
    assert len(extras) > 4
    told = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert extras == set(re.findall(r"^\| `(\w+)` \|", told, re.M))


def test_what_is_released_has_one_version() -> None:
    stated = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert stated is not None
    assert stated.group(1) == projclust.__version__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_they_show(path: Path, tmp_path: Path) -> None:
    def shown(notebook: Any) -> list[list[str]]:
        """The kinds of each cell's outputs."""
        return [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]

    assert shown(ran(path, tmp_path)) == shown(nbformat.read(path, as_version=4))
