"""The machine that a benchmark runs on: its name, its clock, and the rates from which floors are computed.

Ratios to floors that were measured in the same run say more than seconds: they stay when the machine changes.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Rates:
    """What the machine can do at best, measured.

    Attributes:
        products: float32 operations a second in a matrix product.
        copies: bytes a second, read and written, in a copy within the main memory of the device.
        call: seconds of the smallest operation.
    """

    products: float
    copies: float
    call: float

    def floor(self, operations: float, moved: float) -> float:
        """Seconds that work of so many operations, and so many bytes read and written, takes at least."""
        return max(self.call, operations / self.products, moved / self.copies)


@dataclass(frozen=True)
class Machine:
    """A device to measure on.

    Attributes:
        device: "cpu" or "cuda".
        quick: whether to repeat little, as for a check that the benchmark runs at all.
    """

    device: str = "cpu"
    quick: bool = False

    @property
    def name(self) -> str:
        """The device's name, and what the figures depend on besides."""
        if self.device == "cuda":
            return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        features = torch.backends.cpu.get_cpu_capability()
        return f"{processor()} ({features}), {torch.get_num_threads()} threads, torch {torch.__version__}"

    @cached_property
    def rates(self) -> Rates:
        """The rates of this machine, measured at the first use."""
        values = torch.ones(1, device=self.device)
        return Rates(self.matrix_rate(512), self._copy_rate(), self.seconds(lambda: values.add_(1), repeats=9))

    def matrix_rate(self, d: int) -> float:
        """Float32 operations a second of a product of the solver's shape."""
        left, right = torch.randn(4096, d, device=self.device), torch.randn(d, 4 * d, device=self.device)
        return 2 * left.numel() * right.shape[1] / self.seconds(lambda: left @ right, repeats=9)

    def _copy_rate(self) -> float:
        source = torch.ones(2**22 if self.quick else 2**26, device=self.device)  # more than a GPU's cache holds
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source), repeats=9)

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Work) -> float:
        """Seconds of one run."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started

    def seconds(self, work: Work, repeats: int = 3) -> float:
        """The median time of `work`, after one run that is not counted."""
        work()
        return statistics.median(self.timed(work) for _ in range(repeats))

    def alternating(self, works: dict[str, Work]) -> dict[str, list[float]]:
        """Times of each work, in rounds that alternate: at least 9, more for 3 seconds; one before them is not counted.

        A quick machine does 3 rounds.
        """
        times: dict[str, list[float]] = {name: [] for name in works}
        least, patience = (4, 0.0) if self.quick else (10, 3.0)
        started, rounds = time.perf_counter(), 0
        while rounds < least or (time.perf_counter() - started < patience and rounds < 200):
            for name, work in works.items():
                times[name].append(self.timed(work))
            rounds += 1
        return {name: taken[1:] for name, taken in times.items()}

    def print_row(self, what: str, dense: Work, ours: Work, floor: float | None = None) -> None:
        """Print a row: dense and ours in milliseconds, the ratios of medians and of minimums, ours over its floor."""
        times = self.alternating({"dense": dense, "ours": ours})
        (middle, our_middle), (least, our_least) = (
            [choose(times[name]) for name in ("dense", "ours")] for choose in (statistics.median, min)
        )
        over = "-" if floor is None else f"{our_middle / floor:.1f}"
        print(
            f"| {what} | {1e3 * middle:.2f} | {1e3 * our_middle:.2f} | {our_middle / middle:.2f} "
            f"| {our_least / least:.2f} | {over} |",
            flush=True,
        )


def print_head(ours: str) -> None:
    """Print the head of a table of `Machine.print_row`."""
    print(f"| what | dense, ms | {ours}, ms | ratio of medians | of minimums | {ours} over its floor |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)


def processor() -> str:
    """The model of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Let the command line choose the machine."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Where to compute (default: cpu).")
    parser.add_argument(
        "--quick", action="store_true", help="Use small sizes and few repetitions, to see that it runs."
    )


def machine_of(arguments: argparse.Namespace) -> Machine:
    """The machine that was chosen."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: this torch sees no CUDA device; use --device cpu")
    torch.manual_seed(0)
    return Machine(arguments.device, arguments.quick)


def beside_target(seconds: float, target: float | None) -> str:
    """What to print behind a time for which there is a target."""
    return "" if target is None else f" (target: {target:g} s, {'met' if seconds <= target else 'missed'})"
