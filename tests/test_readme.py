"""What README.md shows: its Python runs, its commands parse."""

import ast
import contextlib
import re
import shlex
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

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROWS, WIDTH = 2000, 64


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> Iterator[str]:
    """The uses of `projclust` in console blocks and, where they are whole and not just a command's name, in the text."""
    for block in blocks("console"):
        yield from re.findall(r"^\$ (projclust .*)$", block.replace("\\\n", " "), re.MULTILINE)
    for code in re.findall(r"`(projclust [^`]*)`", README):
        if "..." not in code and len(code.split()) > 2:
            yield " ".join(code.split())


def names_of_models(code: str) -> set[str]:
    """The texts from which a block loads something."""
    return {
        argument.value
        for call in ast.walk(ast.parse(code))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


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


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where every model that the block names is a tiny one of the same name, which goes before the Hub.

    Besides, a block may use `matrix`, rows to cluster, and `weights`, one for each of them.
    """
    monkeypatch.chdir(tmp_path)
    for name in names_of_models(code):
        save_stand_in(name, tmp_path / name)
    generator = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {
        "__name__": "readme",
        "matrix": torch.randn(300, WIDTH, generator=generator),
        "weights": torch.rand(300, generator=generator),
    }
    exec(compile(code, "README.md", "exec"), names)


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
