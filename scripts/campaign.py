"""A fault campaign: damaged checkpoints, killed runs and wrong commands, each many times, and what came of them.

    python scripts/campaign.py [--quick] [--damage 10000] [--kills 200] [--mistakes 500] [--seed 0] [--output FILE]

It needs no network, and Linux. What it prints, or writes to a file, is a summary in Markdown; it ends with exit code 1
where there is a fault. `--case N` shows what one damaged checkpoint did, by the number that the summary gives.
"""

import argparse
import importlib
import os
import pkgutil
import platform
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Before torch and transformers are imported: a forked process has no threads of its parent's.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from campaign_damage import CLASSES, FAULTS, Case, counts, make_kinds, one_case, run_cases  # noqa: E402
from campaign_kills import run_kills  # noqa: E402
from campaign_mistakes import run_mistakes  # noqa: E402

import projclust.jobs  # noqa: E402


def main() -> int:
    """Run the parts that are asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Some of each: 120 checkpoints, 2 kills, 24 commands.")
    parser.add_argument("--damage", type=int, help="Damaged checkpoints (10000).")
    parser.add_argument("--kills", type=int, help="Killed runs (200).")
    parser.add_argument("--mistakes", type=int, help="Wrong commands (500).")
    parser.add_argument("--seed", type=int, default=0, help="The seed of all random choices (0).")
    parser.add_argument("--case", type=int, help="Only this damaged checkpoint, in this process.")
    parser.add_argument("--output", type=Path, help="The file to write instead of printing.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in pkgutil.iter_modules(projclust.jobs.__path__, "projclust.jobs."):
        importlib.import_module(module.name)  # once, not in each process
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # of tiny models without a tokenizer
    sizes = dict(
        zip(("damage", "kills", "mistakes"), (120, 2, 24) if options.quick else (10000, 200, 500), strict=True)
    )
    sizes |= {name: given for name in sizes if (given := getattr(options, name)) is not None}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.case is not None:
            print(one_case(make_kinds(root), options.case, options.seed, root / "damaged"))
            return 0
        parts, faults = [_head(options.seed)], 0
        for name, part in {"damage": _damage, "kills": _kills, "mistakes": _mistakes}.items():
            if sizes[name]:
                started = time.perf_counter()
                text, found = part(root / name, sizes[name], options.seed)
                parts.append(f"{text}\n\n{found} faults, in {time.perf_counter() - started:.0f} s.")
                faults += found
                if options.output is not None:  # after each part, for they take minutes
                    options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if options.output is None:
        print("\n\n".join(parts))
    return int(faults > 0)


def _head(seed: int) -> str:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return f"Seed {seed}; Python {platform.python_version()}, {names}."


def _damage(root: Path, count: int, seed: int) -> tuple[str, int]:
    root.mkdir()
    kinds = make_kinds(root)
    cases: list[Case] = []
    for case in run_cases(kinds, range(count), seed, root / "damaged"):
        cases.append(case)
        if case.verdict in FAULTS:
            print(case, file=sys.stderr, flush=True)
    found = counts(cases)
    shown = [name for name in CLASSES if name in FAULTS or any(own[name] for own in found.values())]
    lines = [f"| {count:,} damaged checkpoints | {' | '.join(found)} | all |", "|---" * (len(found) + 2) + "|"]
    for name in shown:
        numbers = [own[name] for own in found.values()]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    bad = [case for case in cases if case.verdict in FAULTS]
    lines += ["", *(f"- {case.number} ({case.kind}) {case.damage}: {case.verdict}" for case in bad)] if bad else []
    return "## Damaged checkpoints\n\n" + "\n".join(lines), len(bad)


def _kills(root: Path, count: int, seed: int) -> tuple[str, int]:
    root.mkdir()
    return _table("Killed runs", *run_kills(root, count, seed))


def _mistakes(root: Path, count: int, seed: int) -> tuple[str, int]:
    root.mkdir()
    return _table("Wrong commands", *run_mistakes(root, count, seed))


def _table(title: str, counted: dict[str, int], faults: list[str]) -> tuple[str, int]:
    lines = [f"| {title.lower()} | {sum(counted.values()):,} |", "|---|---|"]
    lines += [f"| {name} | {number} |" for name, number in counted.items()]
    lines += ["", *(f"- {fault}" for fault in faults)] if faults else []
    return f"## {title}\n\n" + "\n".join(lines), len(faults)


if __name__ == "__main__":
    sys.exit(main())
