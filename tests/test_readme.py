"""What README.md and the pages of docs/ show: their Python runs, their commands parse, their links lead somewhere."""

import ast
import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import typer
import typer.main

from projclust import compress_model
from projclust.cli.app import app
from projclust.jobs.export import export_checkpoint
from projclust.jobs.options import ExportOptions

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# Its blocks take arrays that tests/hf/test_format.py gives them.
FORMAT = ROOT / "docs" / "format.md"
ROWS, WIDTH = 2000, 64


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def programs() -> Iterator[Any]:
    """What is run: every block of README alone, those of another page one after the other."""
    for page in PAGES:
        found = blocks(page, "python")
        if page == README:
            yield from (pytest.param(code, id=f"README-{number}") for number, code in enumerate(found))
        elif found and page != FORMAT:
            yield pytest.param("\n\n".join(found), id=page.stem)


def commands() -> Iterator[str]:
    """The uses of `projclust` in console blocks and, where they are whole and not just a command's name, in the text."""
    for page in PAGES:
        for block in blocks(page, "console"):
            yield from re.findall(r"^\$ (projclust .*)$", block.replace("\\\n", " "), re.MULTILINE)
        for code in re.findall(r"`(projclust [^`]*)`", page.read_text(encoding="utf-8")):
            if "..." not in code and len(code.split()) > 2:
                yield " ".join(code.split())


def names_of_models(code: str) -> set[str]:
    """The texts from which a block loads something that it does not save itself."""

    def named_by(method: str) -> set[str]:
        return {
            argument.value
            for call in ast.walk(ast.parse(code))
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == method
            for argument in call.args
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        }

    return named_by("from_pretrained") - named_by("save_pretrained")


def save_stand_in(name: str, folder: Path) -> None:
    """A tiny checkpoint with a tokenizer; compressed where the name says so."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=ROWS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = hf.BertModel(config)
    if "projclust" in name:
        compress_model(model, bits=4, metric="none")
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{row}" for row in range(5, ROWS))]
    hf.BertTokenizer(vocab={word: row for row, word in enumerate(words)}).save_pretrained(folder)


@pytest.mark.parametrize("code", list(programs()))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where every model that the block names is a tiny one of the same name, which goes before the Hub.

    Besides, a block may use `matrix`, rows to cluster, and `weights`, one for each of them.
    """
    monkeypatch.chdir(tmp_path)
    for name in names_of_models(code):
        save_stand_in(name, tmp_path / name)
        if name.endswith("onnx"):
            export_checkpoint(ExportOptions(name, f"{name}-exported", body="int8"))
            shutil.copytree(f"{name}-exported/onnx", f"{name}/onnx")
    generator = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {
        "__name__": "readme",
        "matrix": torch.randn(300, WIDTH, generator=generator),
        "weights": torch.rand(300, generator=generator),
    }
    exec(compile(code, "<a page>", "exec"), names)


def parse(line: str) -> None:
    """Have the command line read a command, and do nothing.

    Raises:
        click's UsageError: an unknown command or option, a value that none can be, a missing argument.
    """
    root = typer.main.get_command(app)
    name, *arguments = shlex.split(line, comments=True)
    context = root.make_context(name, list(arguments))
    while hasattr(context.command, "resolve_command"):
        left = [*getattr(context, "_protected_args", []), *context.args]
        name, command, left = context.command.resolve_command(context, left)
        context = command.make_context(name, left, parent=context)


@pytest.mark.parametrize("line", dict.fromkeys(commands()))
def test_commands_parse(line: str) -> None:
    with contextlib.suppress(typer.Exit):  # of --help
        parse(line)


@pytest.mark.parametrize("line", ["projclust compress x --no-such-option", "projclust compres x", "projclust compress"])
def test_a_wrong_command_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(line)
