"""`projclust compress` from start to written folder: on an idle machine, beside busy processes, under a CPU quota.

    python benchmarks/bench_compress.py MODEL [--bits 0.5] [--rounds 3]

Times the command in processes of its own and prints the median of each case, and how many times as long as on the idle
machine it takes. The quota is one core, set with a control group (as root, on Linux); it is skipped, with the reason,
where none can be made. Nothing tells the command that it has a quota.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# Of a group of processes: the file for the quota, and what gives it one core.
QUOTA = {CGROUPS: ("cpu.max", "100000 100000"), CGROUPS / "cpu": ("cpu.cfs_quota_us", "100000")}


def seconds(model: str, bits: float, prepare: Callable[[], None] | None = None) -> float:
    """The time of one run; `prepare` is called in its process before it starts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "projclust", "compress", model, "--bits", f"{bits:g}"]
        started = time.perf_counter()
        subprocess.run([*command, "-o", f"{folder}/out"], check=True, capture_output=True, preexec_fn=prepare)
        return time.perf_counter() - started


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that never rest, inside."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextmanager
def one_core() -> Iterator[Callable[[], None]]:
    """What puts a process under a quota of one core.

    Raises:
        OSError: no control group can be made.
    """
    root = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "cpu"
    group, (file, value) = root / "projclust_bench", QUOTA[root]
    group.mkdir()
    try:
        (group / file).write_text(value)

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        yield join
    finally:
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="The checkpoint to compress.")
    parser.add_argument("--bits", type=float, default=0.5, help="Stored bits for each weight.")
    parser.add_argument("--rounds", type=int, default=3, help="How often each case is timed.")
    parser.add_argument("--busy", type=int, default=2, help="The number of busy processes.")
    options = parser.parse_args()
    print(f"{options.model}, --bits {options.bits:g}, {os.cpu_count()} cores, median of {options.rounds}")
    print("| case | seconds | x idle |")
    print("| --- | ---: | ---: |")
    idle = 0.0
    cases: dict[str, AbstractContextManager[Callable[[], None] | None]] = {
        "idle": nullcontext(None),
        f"beside {options.busy} busy processes": busy(options.busy),
        "quota of one core": one_core(),
    }
    for case, around in cases.items():
        try:
            with around as prepare:
                times = [seconds(options.model, options.bits, prepare) for _ in range(options.rounds)]
        except OSError as error:
            print(f"| {case} | skipped: {error.strerror} | |")
            continue
        idle = idle or statistics.median(times)
        print(f"| {case} | {statistics.median(times):.1f} | {statistics.median(times) / idle:.2f} |", flush=True)


if __name__ == "__main__":
    main()
