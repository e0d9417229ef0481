"""What the commands print: results on stdout, progress and warnings on stderr."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Format(str, Enum):
    """How a result is printed."""

    HUMAN = "human"
    JSON = "json"


def plain(text: str) -> str:
    """Text that a terminal only shows: what is no character to see, such as escape codes and line breaks, is a "?".

    A folder's name or what a repository's report says may hold any.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of name and value, the values below one another."""
    rows = [(plain(name), plain(value)) for name, value in rows]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def quoted(path: str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


class StreamError(Exception):
    """Stdout takes nothing, so that the result cannot be printed."""


def show(text: str) -> None:
    """Print to stdout."""
    if sys.stdout is None:
        raise StreamError("stdout is closed: the result cannot be printed")
    with _heeding_errors():
        print(text)
    flush()


def flush() -> None:
    """Write what was printed, so that an error shows here and not while Python ends."""
    if sys.stdout is not None:
        with _heeding_errors():
            sys.stdout.flush()


@contextmanager
def _heeding_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise StreamError(f"cannot print the result: {error.strerror}") from error


def tell(text: str) -> None:
    """One line on stderr; where nobody takes it, the run goes on all the same."""
    try:
        print(plain(text), file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Lead a stream nowhere, what waits in it and would fail again as Python ends too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_main_process() -> bool:
    """Whether this is the one that prints, of the processes that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def warn(text: str) -> None:
    """One line on stderr."""
    if is_main_process():
        tell(f"warning: {text}")


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:,.2f} MB"


class Bar:
    """One line on a terminal's stderr: what is being done, how far it is, how long it has taken."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.text = progress, ""
        self._task = progress.add_task("", total=None)

    def stage(self, text: str) -> None:
        """Begin something of unknown length."""
        self.text = text
        self._progress.start()
        self._progress.reset(self._task, total=None, description=escape(plain(text)))

    def advance(self, text: str, done: int, total: int | None) -> None:
        """Show how far it is; a total of None is an unknown one."""
        self._progress.update(self._task, description=escape(plain(text)), completed=done, total=total)

    def log(self, text: str) -> None:
        """A line that stays on stderr."""
        if is_main_process():
            self._progress.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def clear(self) -> None:
        """Leave the line to somebody else's bars, until the next stage."""
        self._progress.stop()


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar on stderr, from its first stage on; silent when stderr is not a terminal.

    Until then the Hub client shows its own bars for downloads. Those of transformers are switched off.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = console.is_terminal and is_main_process()
    progress = Progress(*columns, console=console, transient=True, disable=not shown)
    try:
        yield Bar(progress)
    finally:
        progress.stop()
