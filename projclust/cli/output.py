"""What the commands print: results on stdout, progress and warnings on stderr."""

import gc
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from projclust.cli.stopping import is_main_process


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


def warn(text: str) -> None:
    """One line on stderr."""
    if is_main_process():
        tell(f"warning: {text}")


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:,.2f} MB"


# Where stderr is no terminal, runs that take longer than these seconds tell their stages, and shorter ones nothing.
PATIENCE = 10.0


class Bar:
    """One line on a terminal's stderr: what is being done, how far it is, how long it has taken.

    Where stderr is no terminal, each stage of a long run is a line there. The first ones wait for `PATIENCE` seconds:
    what a run refuses it has refused by then, in one line.
    """

    def __init__(self, progress: Progress, lines: bool) -> None:
        self._progress, self.text = progress, ""
        self._task = progress.add_task("", total=None)
        self._lines, self._waiting, self._lock = lines, list[str](), threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._tell)
        self._timer.daemon = True
        self.has_told = not progress.disable

    def stage(self, text: str) -> None:
        """Begin something of unknown length."""
        self.text = text
        self._progress.reset(self._task, total=None, description=escape(plain(text)))
        self._progress.start()
        if self._lines:
            with self._lock:
                self._waiting.append(text)
            if self.has_told:
                self._tell()

    def _tell(self) -> None:
        with self._lock:
            for text in self._waiting:
                tell(text)
            self._waiting.clear()
            self.has_told = True

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

    def imported(self) -> None:
        """The job is imported: until its first stage the Hub client may show its own bars, transformers none."""
        from transformers.utils import logging

        if not gc.isenabled():  # see `cli.entry`
            gc.freeze()
            gc.enable()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.clear()
        if self._lines:
            self._timer.start()

    def end(self) -> None:
        """Tell no more."""
        self._timer.cancel()
        self.clear()


@contextmanager
def progress_bar(what: str, lines: bool = True, tells_time: bool = True) -> Iterator[Bar]:
    """A bar on stderr that shows `what` begins at once, while the job is imported; see `Bar.imported`.

    Where stderr is no terminal, `lines` has a line for each stage of a long run. In the end the time is told.
    """
    started = time.perf_counter()
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = console.is_terminal and is_main_process()
    progress = Progress(*columns, console=console, transient=True, disable=not shown)
    bar = Bar(progress, lines and not shown and is_main_process())
    try:
        bar.stage(what)
        yield bar
    finally:
        bar.end()
    if tells_time and bar.has_told:
        tell(f"took {time.perf_counter() - started:.1f} s")
