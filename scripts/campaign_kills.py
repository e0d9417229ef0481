"""Killed runs for scripts/campaign.py: SIGKILL at random times, and whether what is there then is whole."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from campaign_mistakes import forked
from tiny_models import tiny_model

_WEIGHTS = (".safetensors", ".onnx", "config.json", ".txt")
# Half of the kills come so soon after the run began to write.
_WRITING_SECONDS = 0.25


def run_kills(root: Path, count: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Kill `count` runs of compress, expand and export into one place; how many left what, and the faults."""
    generator = random.Random(f"kills/{seed}")
    jobs = _prepare(root)
    whole: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for name, arguments in jobs.items():
        started = time.perf_counter()
        if forked(arguments)[0] != 0:
            raise RuntimeError(f"{name} does not run")
        seconds[name], whole[name] = time.perf_counter() - started, _state(root / "out")
        shutil.rmtree(root / "out")
    # The user's: the models, a file, and a folder whose name is nearly that of a room.
    own = {name: _state(root / name) for name in ("dense", "first", "second", ".out.partial-notes")}
    counted: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(count):
        name = generator.choice(list(jobs))
        if generator.random() < 0.2:
            shutil.rmtree(root / "out", ignore_errors=True)
        before = _state(root / "out")
        writing = generator.random() < 0.5
        delay = generator.uniform(0, _WRITING_SECONDS if writing else 1.1 * seconds[name])
        _killed(jobs[name], delay, (lambda: bool(_rooms(root))) if writing else None)
        after = _state(root / "out")
        result = "old" if after == before else "new" if after == whole[name] else "neither"
        beside = ", and a hidden room beside it" if _rooms(root) else ""
        counted[f"{name.split()[0]}: the {result} folder{beside}"] += 1
        if result == "neither":
            faults.append(f"{number} {name} after {delay:.3f} s: neither the old folder nor the new one is whole")
        if {own_name: _state(root / own_name) for own_name in own} != own:
            faults.append(f"{number} {name} after {delay:.3f} s: the user's own files are others")
    name, arguments = next(iter(jobs.items()))
    if forked(arguments)[0] != 0 or _state(root / "out") != whole[name] or _rooms(root):
        faults.append(f"{name} does not clean up")
    return dict(sorted(counted.items())), faults


def _prepare(root: Path) -> dict[str, list[str]]:
    """A dense model, two compressed ones, what is the user's, and two runs of each command into one folder."""
    tiny_model("bert").save_pretrained(root / "dense")
    (root / "dense" / "vocab.txt").write_text("".join(f"w{i}\n" for i in range(120)))
    (root / ".out.partial-notes").mkdir()
    (root / ".out.partial-notes" / "mine.txt").write_text("mine")
    own = {
        "first": ["--k", "2", "--j", "4"],
        "second": ["--bits", "6", "--weights", "uniform", "--sensitivity", "none"],
    }
    for name, target in own.items():
        if forked(["compress", str(root / "dense"), *target, "-o", str(root / name)])[0] != 0:
            raise RuntimeError("compress does not run")
    out = ["-o", str(root / "out"), "--overwrite"]
    jobs = {f"compress {name}": ["compress", str(root / "dense"), *target, *out] for name, target in own.items()}
    jobs |= {f"expand {name}": ["expand", str(root / name), *out] for name in own}
    return jobs | {f"export {name}": ["export", str(root / name), *out] for name in own}


def _state(folder: Path) -> dict[str, str]:
    """The files of a folder: digests of weights and configuration, and whether others, which tell times, are whole."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_file():
            content = path.read_bytes()
            whole = bool(content)
            if path.name.startswith("projclust_") and path.suffix == ".json":
                try:
                    json.loads(content)
                except ValueError:
                    whole = False
            digest = hashlib.sha256(content).hexdigest() if path.name.endswith(_WEIGHTS) else f"whole: {whole}"
            found[path.relative_to(folder).as_posix()] = digest
    return found


def _rooms(root: Path) -> list[Path]:
    return [path for path in root.glob(".out.partial-*") if path.name != ".out.partial-notes"]


def _killed(arguments: list[str], delay: float, begun: Callable[[], bool] | None) -> None:
    """Run a command in a forked process and kill it after a while, counted from when it began to write, if that is."""
    pid = os.fork()
    if pid == 0:
        _run(arguments)
    deadline = time.monotonic() + 60
    while begun is not None and not begun() and time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _run(arguments: list[str]) -> None:
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        from projclust.cli.app import run

        code = run(arguments)
    finally:
        os._exit(code)
