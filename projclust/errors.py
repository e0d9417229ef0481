"""The error classes of projclust."""

import os


class ProjclustError(ValueError):
    """A mistake the caller can mend: bad options, an unusable table, a damaged checkpoint, a full disk.

    The message is one sentence that names what is wrong and what to do next. The command line prints it as
    ``error: ...`` and exits with code 2; anything else that escapes is a bug or a failure of the machine.
    """


class CheckpointError(ProjclustError):
    """A checkpoint folder that is missing, damaged, foreign or newer than this projclust."""


class ServiceError(ProjclustError):
    """The Hub or the network failed, which no change of the command mends: trying again may help.

    The one kind of ProjclustError with which the command line exits with code 1.
    """


class OptionError(ProjclustError):
    """An option that cannot be, or does not go with another.

    The message has the names of options in backquotes; the command line shows them as flags.
    """


def is_out_of_reach(error: BaseException) -> bool:
    """Whether a service that does not answer is behind an error, and not the user's wish to do without."""
    if any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in _OFFLINE):
        return False
    cause: BaseException | None = error
    while cause is not None:
        # Those of httpx and requests, which are not imported for this.
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & {"ConnectionError", "TimeoutError", "TransportError", "ConnectTimeout", "ReadTimeout"}:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def not_installed(error: ModuleNotFoundError) -> str:
    """What to do about a package that is missing, as of an installation for loading checkpoints alone."""
    return f"{error.name} is not installed: `pip install projclust` installs all that commands need"
