"""Where cells are measured; imports no torch."""

from dataclasses import dataclass

from projclust.errors import OptionError


@dataclass(frozen=True)
class Engine:
    """A cluster of Ray, and what a cell takes of it.

    Attributes:
        address: where it listens, "auto" for the one this machine belongs to, None for one of this machine alone.
        cpus, gpus: what Ray reserves for a cell; a cell computes with so many threads.
    """

    address: str | None
    cpus: int
    gpus: float

    @classmethod
    def parse(cls, text: str, cpus: int, gpus: float) -> "Engine":
        """The engine that ``ray`` or ``ray:ADDRESS`` names.

        Raises:
            OptionError: it names none.
        """
        name, _, address = text.partition(":")
        if name != "ray" or text.endswith(":"):
            raise OptionError(f"`engine` takes ray or ray:ADDRESS, not {text!r}")
        return cls(address or None, cpus, gpus)
