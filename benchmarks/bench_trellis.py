"""The trellis search on a CPU: compiled loops and torch, by threads, alone and beside busy processes.

python benchmarks/bench_trellis.py

A step of one bit a coordinate compares 256 paths of a row and adds 256 errors: what one core must do at least is stated
as the time of reading and writing 256 costs from its cache, and each time as a multiple of that. Beside busy processes
torch's threads wait for each other after each of some 600 small operations; whether they wait actively or asleep
(OMP_WAIT_POLICY, which the command line sets to passive) is tried, too.
"""

import argparse
import os
import subprocess
import sys
import time

ROWS, COORDINATES = 2048, 95
# Costs read and written by a core, 32 bytes each in a cycle of some third of a nanosecond.
FLOOR = 2 * 256 * 4 / 32 / 3e9


def seconds(backend: str, threads: int) -> float:
    """The best of three searches, in this process."""
    import torch

    from projclust.coding import trellis

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    if backend == "torch":
        trellis.has_kernels = lambda: False  # type: ignore[assignment]
    rows, importance = torch.randn(ROWS, COORDINATES), torch.ones(COORDINATES)
    kinds = [3] * COORDINATES
    trellis.search(rows[:64], kinds, importance)  # compiled, or read from the cache
    times = []
    for _ in range(3):
        started = time.perf_counter()
        trellis.search(rows, kinds, importance)
        times.append(time.perf_counter() - started)
    return min(times)


def in_own_process(backend: str, threads: int, wait: str) -> float:
    """The same in a process of its own, whose idle threads wait actively or passively."""
    command = [sys.executable, __file__, "--one", backend, "--threads", str(threads)]
    environment = os.environ | {"OMP_WAIT_POLICY": wait}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=["compiled", "torch"], default=None, help="Time this backend once, and stop.")
    parser.add_argument("--threads", type=int, default=2, help="The threads of the one backend.")
    parser.add_argument("--busy", type=int, default=2, help="The number of busy processes.")
    options = parser.parse_args()
    if options.one is not None:
        print(seconds(options.one, options.threads))
        return
    floor = ROWS * COORDINATES * FLOOR
    print(f"{ROWS} rows x {COORDINATES} steps of one bit; floor of one core {floor:.4f} s")
    print("| search | threads | idle threads wait | alone, s | x floor | beside busy processes, s | x alone |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for backend, threads, wait in [
        ("compiled", 1, "passive"),
        ("compiled", 2, "passive"),
        ("torch", 1, "passive"),
        ("torch", 2, "passive"),
        ("torch", 2, "active"),
    ]:
        alone = in_own_process(backend, threads, wait)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
        try:
            beside = in_own_process(backend, threads, wait)
        finally:
            for process in busy:
                process.kill()
        times = f"{alone:.3f} | {alone / floor:.1f} | {beside:.3f} | {beside / alone:.1f}"
        print(f"| {backend} | {threads} | {wait} | {times} |", flush=True)


if __name__ == "__main__":
    main()
