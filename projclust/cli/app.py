"""The `projclust` program: its commands, and the one map from errors to messages and exit codes."""

import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import projclust
from projclust.cli.commands import COMMANDS
from projclust.cli.derive import Command, Group
from projclust.cli.output import StreamError, flush, silence, tell
from projclust.cli.stopping import INTERRUPTED, is_main_process, stopped_by
from projclust.errors import OptionError, ProjclustError, ServiceError, not_installed

USAGE_MISTAKE, FAILURE = 2, 1
_PATIENCE = 30.0  # seconds that one of many processes waits for the main one to say what is wrong

app = typer.Typer(
    name="projclust",
    cls=Group,
    help="Shrink the embedding layer of Hugging Face models, and measure what it costs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command(cls=Command)(command)


def _print_version(value: bool) -> None:
    if value:
        print(f"projclust {projclust.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.", metavar="")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command; a mistake or failure is one line on stderr.

    Returns:
        0; 2 for a mistake the user can mend; 1 for a failure of the machine, the network or projclust; 130 when
        interrupted by Ctrl-C, or 128 and the number of another signal.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    debug = "--debug" in arguments
    try:
        code = int(app(list(arguments), prog_name="projclust", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            return _interrupted(debug)
        flush()
        return code
    except KeyboardInterrupt:
        return _interrupted(debug)
    except ServiceError as error:
        return _fail(str(error), FAILURE, debug)
    except OptionError as error:
        flags = re.sub(r"`(\w+)`", lambda name: "--" + name[1].replace("_", "-"), str(error))
        return _fail(flags, USAGE_MISTAKE, debug)
    except ProjclustError as error:
        return _fail(str(error), USAGE_MISTAKE, debug)
    except BrokenPipeError:
        # The reader of our output has gone; python would complain again when it flushes stdout at exit.
        silence(sys.stdout)
        return FAILURE
    except StreamError as error:
        return _fail(str(error), FAILURE, debug)
    except ModuleNotFoundError as error:
        return _fail(not_installed(error), FAILURE, debug)
    except MemoryError:
        return _fail("out of memory", FAILURE, debug)
    except Exception as error:
        if stopped_by() is not None:  # an extension's import makes another error of it
            return _interrupted(debug)
        if hasattr(error, "format_message"):  # typer's own: unknown options, missing arguments
            message = error.format_message()
            if not message:  # `projclust` alone: the help was printed
                return USAGE_MISTAKE
            message = message.replace("Value error, ", "")  # which kind of Python error it was
            command = getattr(getattr(error, "ctx", None), "command_path", None) or "projclust"
            return _fail(f"{message} ({command} --help lists what there is)", USAGE_MISTAKE, debug)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", FAILURE, debug)


def _interrupted(debug: bool) -> int:
    return _fail("interrupted", stopped_by() or INTERRUPTED, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if is_main_process() or (code != INTERRUPTED and stopped_by() is None and not _said_by_main(code)):
        tell(f"error: {' '.join(message.split())}")
    return code


def _said_by_main(code: int) -> bool:
    """Whether the main process has said why the run ends: it found the same mistake, and the launcher stops the others.

    A process that ended first would have the launcher stop the main one before it could say anything. A mistake that
    this one alone found, and a failure of its own, nobody else says.
    """
    if code != USAGE_MISTAKE:
        return False
    try:
        time.sleep(_PATIENCE)
    except KeyboardInterrupt:
        return True
    return False
