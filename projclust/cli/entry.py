"""The program's first steps, before anything that takes a while to import: signals, and streams that are not there."""

import gc
import os
import signal
import sys

from projclust.cli.stopping import INTERRUPTED, heed_signals, is_main_process, stopped_by
from projclust.errors import not_installed


def main() -> None:
    """Entry point: run the command line and exit.

    Told to stop, at any moment and by any of the usual signals, the program says so in one line and leaves nothing.
    """
    # What is imported stays: to look through it for garbage, over and over, is felt in every command. Those that do
    # more than read a few files look again once they have imported all: `Bar.imported`.
    gc.disable()
    try:
        heed_signals()
        open_streams()
        from projclust.cli.app import run  # takes a while

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:  # an installation without what it stands on, which loads checkpoints only
        print(f"error: {not_installed(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:  # before `run` could heed it
        if is_main_process():
            print("error: interrupted", file=sys.stderr)
        code = stopped_by() or INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left that could say anything
    sys.exit(code)


def open_streams() -> None:
    """Open what the program was started without, so that no file of its own gets the number of such a stream.

    Without a stdout there is no `sys.stdout`, and nothing can be printed; what goes to a missing stderr is lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # no name must fail for want of letters
            stream.reconfigure(errors="backslashreplace")
