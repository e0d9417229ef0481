"""Peak memory of a piece of work on a CPU, for the benchmarks; Linux only."""

import threading
from collections.abc import Callable
from pathlib import Path

# For the environment of a measured process: freed memory goes back to the system at once (glibc), so that what the
# process holds is what it uses.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def extra_memory(work: Callable[[], object], interval: float = 0.002) -> int:
    """The most bytes this process holds during `work` beyond those before, looked at every `interval` seconds."""
    before = peak = _anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, _anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - before


def _anonymous_memory() -> int:
    """Bytes that are not pages of files, such as libraries and a mapped checkpoint."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
