"""Pages of the site that are made while it is built: commands, options and notebooks."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import typer
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from projclust.cli.app import app
from projclust.options import fields_of

COMMANDS_PAGE = "commands.md"

_COMMON = ("config", "format", "debug", "help")
_ABOUT_COMMANDS = """# Commands

Every command also takes `--help`, `--config FILE.yaml`, which sets options by their names (flags win), `--format json`
for programs, and `--debug`, which shows where an error comes from. Results go to stdout, progress and warnings to
stderr: one line on a terminal, elsewhere a line for each stage of what takes more than ten seconds.

Exit codes: 0; 2 for a mistake that you can mend, told in one line; 1 for a failure of the machine or the network; 130
after Ctrl-C. What was being written is then not there, and an older folder of the same name is as it was."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; mkdocs calls it with the files of docs/."""
    pages = {COMMANDS_PAGE: "\n".join(commands_page())}
    for path in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = "\n".join(notebook_page(path))
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put a table of options where a page has `<!-- options of MODULE.CLASS -->`; mkdocs calls it with every page."""

    def table(found: re.Match[str]) -> str:
        module, _, name = found.group(1).rpartition(".")
        rows = [
            f"| `{part.name}`{{ .flag }} | {_cell(part.metadata['declared'].help)} | {_default(part.default)} |"
            for part in fields_of(getattr(import_module(module), name))
        ]
        return "\n".join(["| option | what it does | default |", "| --- | --- | --- |", *rows])

    return re.sub(r"<!-- options of ([\w.]+) -->", table, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Show the `Example::` of docstrings as Sphinx would; mkdocs calls it with every page."""
    return html.replace("<p>Example::</p>", "<p>Example:</p>")


def commands_page() -> Iterator[str]:
    """The help of every command: what it does, its examples, its options."""
    yield _ABOUT_COMMANDS
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        own = [part for part in command.params if part.name not in _COMMON]
        arguments = [part.metavar or part.name.upper() for part in own if part.param_type_name == "argument"]
        yield f"\n## projclust {name}\n\n```text\nprojclust {' '.join([name, *arguments])} [OPTIONS]\n```\n"
        for paragraph in command.help.split("\n\n"):
            text = " ".join(paragraph.split())
            label, separator, example = text.partition("Example: ")
            yield f"Example: `{example}`\n" if separator and not label else f"{text}\n"
        yield "| option | what it does | default |\n| --- | --- | --- |"
        for part in own:
            is_argument = part.param_type_name == "argument"
            flags = arguments if is_argument else [*part.opts, *part.secondary_opts]
            names = " ".join(f"`{flag}`{{ .flag }}" for flag in flags)
            yield f"| {names} | {_cell(part.help or '')} | {_default(part.default)} |"


def _default(value: object) -> str:
    if value is None or callable(value) or value is False or value == () or value == []:
        return ""
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return f"`{text}`{{ .flag }}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def notebook_page(path: Path) -> Iterator[str]:
    """The cells of a notebook as Markdown; its code is shown with what it printed."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            yield f"{source}\n"
            continue
        yield f"```python\n{source}\n```\n"
        for output in cell["outputs"]:
            found = output.get("data", {})
            if image := found.get("image/png"):
                yield f"![What the cell above drew](data:image/png;base64,{''.join(image.split())})\n"
            elif text := "".join(output.get("text", "") or found.get("text/plain", "")):
                yield f"```text\n{text.rstrip()}\n```\n"
    yield f"\n*This page is the notebook `docs/notebooks/{path.name}`; the tests run it.*"
