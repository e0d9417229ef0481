"""The signals that end a run: each is taken as Ctrl-C is. And which of many processes speaks of it."""

import os
import signal
from types import FrameType
from typing import Any

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
# What ends a run as Ctrl-C does: a scheduler's stop, and a terminal that goes away. Windows has no SIGHUP.
_STOPS = ("SIGINT", "SIGTERM", "SIGHUP")

_received: list[int] = []


def heed_signals() -> None:
    """Raise KeyboardInterrupt at the signals that end a run, but for those that whoever started it had ignored."""
    for name in _STOPS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> Any:
    _received.append(number)
    raise KeyboardInterrupt


def stopped_by() -> int | None:
    """The exit code of the signal that came first; None where none came."""
    return 128 + _received[0] if _received else None


def is_main_process() -> bool:
    """Whether this is the one that prints, of the processes that torchrun or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"
