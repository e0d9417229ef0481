"""Peak memory of a piece of work on a CPU, for the benchmarks; Linux only."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# For the environment of a measured process: freed memory goes back to the system at once (glibc), so that what the
# process holds is what it uses.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


class Memory(NamedTuple):
    """Bytes that a process holds.

    Attributes:
        anonymous: those that are not pages of files, such as libraries and a mapped checkpoint.
        resident: all, as `ps` shows them.
    """

    anonymous: int
    resident: int

    @classmethod
    def now(cls) -> "Memory":
        """What this process holds."""
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
        found = {words[0]: 1024 * int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmRSS:")}
        return cls(found["RssAnon:"], found["VmRSS:"])


def extra_memory(work: Callable[[], object], interval: float = 0.002) -> int:
    """The most anonymous bytes this process holds during `work` beyond those before."""
    before = Memory.now()
    return peak_memory(work, interval).anonymous - before.anonymous


def peak_memory(work: Callable[[], object], interval: float = 0.002) -> Memory:
    """The most bytes this process holds during `work`, of each kind, looked at every `interval` seconds."""
    peak, done = Memory.now(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = Memory(*map(max, peak, Memory.now()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak
