"""Wrong commands for scripts/campaign.py: each is one line on stderr and exit code 2, and leaves nothing."""

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from commandline import snapshot
from tiny_models import tiny_model

from projclust.cli.derive import flat
from projclust.jobs import options as declared
from projclust.options import Choice, kind_of

_SECONDS = 60
_OPTIONS = {
    "compress": declared.CompressOptions,
    "plan": declared.PlanOptions,
    "expand": declared.ExpandOptions,
    "export": declared.ExportOptions,
    "inspect": declared.InspectOptions,
    "push": declared.PushOptions,
    "report": declared.ReportOptions,
    "glue-eval": declared.GlueEvalOptions,
}


def forked(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command in a forked process: its exit code, -1 where it was too slow, and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(_SECONDS)
                from projclust.cli.app import run

                code = run(arguments)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(errors="replace"), err.read().decode(errors="replace")


def run_mistakes(root: Path, count: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Give `count` wrong commands; how many of each kind were refused in one line, and the faults."""
    _prepare(root)
    intact = root.with_name("intact")
    shutil.copytree(root, intact, symlinks=True)
    before = _listing(root)
    counted: Counter[str] = Counter()
    faults = []
    for number in range(count):
        generator = random.Random(f"{seed}/{number}")
        name = list(_WAYS)[number % len(_WAYS)]
        arguments = _WAYS[name](root, generator)
        code, out, err = forked(arguments)
        wrong = [f"exit code {code}"] if code != 2 else []
        wrong += ["it printed something"] if out else []
        wrong += [f"{err.count(chr(10))} lines"] if err.strip().count("\n") or not err.startswith("error: ") else []
        if _listing(root) != before:
            wrong.append("the folder changed")
            shutil.rmtree(root)
            shutil.copytree(intact, root, symlinks=True)
        counted[f"{name}: {'not ' if wrong else ''}refused in one line"] += 1
        if wrong:
            shown = " ".join(repr(argument.replace(str(root), "ROOT"))[:100] for argument in arguments)
            faults.append(f"{number} projclust {shown}: {', '.join(wrong)}: {' '.join(err.split())[-300:]}")
    return dict(sorted(counted.items())), faults


def _listing(root: Path) -> tuple[dict[str, bytes], list[str]]:
    return snapshot(root), sorted(str(path) for path in root.rglob("*"))


def _prepare(root: Path) -> None:
    """Models, whole and not, and places that are no output."""
    dense, mistaken = root / "dense", root / "wrong"
    tiny_model("bert").save_pretrained(dense)
    (dense / "vocab.txt").write_text("".join(f"w{i}\n" for i in range(120)))
    if forked(["compress", str(dense), "--k", "3", "--j", "5", "-o", str(root / "compressed")])[0] != 0:
        raise RuntimeError("compress does not run")
    mistaken.mkdir()
    (mistaken / "empty").mkdir()
    (mistaken / "file").write_text("text")
    (mistaken / "loop").symlink_to("loop")
    (mistaken / "foreign").mkdir()
    (mistaken / "foreign" / "thesis.txt").write_text("mine")
    weights, config = (dense / "model.safetensors").read_bytes(), (dense / "config.json").read_bytes()
    models: dict[str, tuple[str, bytes]] = {
        "cut": ("model.safetensors", weights[: len(weights) // 2]),
        "headless": ("model.safetensors", weights[8:]),
        "no-weights": ("model.safetensors", b""),
        "no-config": ("config.json", b""),
        "list-config": ("config.json", b"[1]"),
        "cut-config": ("config.json", config[:100]),
        "binary-config": ("config.json", b"\xff\xfe\x00"),
        "unknown-type": ("config.json", config.replace(b'"bert"', b'"tomato"')),
    }
    for name, (file, content) in models.items():
        shutil.copytree(dense, mistaken / name)
        (mistaken / name / file).write_bytes(content)
    files = {
        "bad.yaml": b"k: [",
        "list.yaml": b"- 1",
        "unknown.yaml": b"frobnicate: 1",
        "type.yaml": b"restarts: many\nseed: x\nbody: 3\nprivate: 7\ncard: [1]\nrevision: {}\n",
        "binary.yaml": b"\x00\xff",
        "deep.yaml": b"a: " + b"[" * 3000,
        "empty.yaml": b"",
    }
    for name, content in files.items():
        (mistaken / name).write_bytes(content)


def _right(root: Path, command: str) -> list[str]:
    """A command that would run."""
    dense, compressed, out = str(root / "dense"), str(root / "compressed"), ["-o", str(root / "out")]
    return {
        "compress": [dense, "--k", "3", "--j", "5", *out],
        "plan": [dense, "--bits", "6", *out],
        "expand": [compressed, *out],
        "export": [compressed, *out],
        "inspect": [dense],
        "push": [compressed, "user/name", "--dry-run"],
        "report": [str(root / "wrong" / "empty"), *out],
        "glue-eval": [dense, "--tasks", "demo", *out],
    }[command]


def _flags(command: str) -> dict[str, Any]:
    """The options of a command by a flag of theirs."""
    parts = [part for part in flat(_OPTIONS[command]).values() if not part.metadata["declared"].is_argument]
    return {(part.metadata["declared"].flags or (f"--{part.name.replace('_', '-')}",))[-1]: part for part in parts}


_NO_NUMBERS = ("abc", "", "1,5", "0x10", "--", "nan", "-inf", "1e", "None", "½", "1 2", "[]", "\n")


def _bad_value(root: Path, generator: random.Random) -> list[str]:
    command = generator.choice(list(_OPTIONS))
    flags = _flags(command)
    flag = generator.choice(list(flags))
    part, kind = flags[flag], kind_of(flags[flag])
    least = max(part.metadata["declared"].least, part.metadata["declared"].above)
    if kind is bool:
        return [command, *_right(root, command), f"{flag}={generator.choice(('maybe', '2', ''))}"]
    if kind is int or kind is float:
        numbers = [*_NO_NUMBERS, *(["-1", "-0.5", str(-(2**70))] if least >= 0 else [])]
        numbers += ["1.5", "1e3"] if kind is int else ["inf"]
        return [command, *_right(root, command), flag, generator.choice(numbers)]
    if (isinstance(kind, type) and issubclass(kind, Choice)) or part.metadata["declared"].choices is not None:
        return [command, *_right(root, command), flag, generator.choice(("magic", "", "AUTO!", "l2 ", "0", "\u0000"))]
    if get_origin(kind) is tuple and get_args(kind)[0] is not str:
        return [command, *_right(root, command), flag, generator.choice(("a", "-1", "1;2", "1,x", "nan", "0.5.1"))]
    values = {
        "--output": _outputs(root, _right(root, command)[0]),
        "--size": ("0", "-1", "abc", "1XB", "", "nanKB", "1e99GB", "1"),
        "--weights": (
            "zipf",
            "",
            "counts:",
            "counts:absent",
            "text:absent",
            "wordfreq:xx",
            "wordfreq:",
            "tokenizer:xx",
        ),
        "--body": ("", "float8", "int8,", "int8;int4", "float32,none"),
        "--revision": ("main", "", "../x", "a b"),
        "--push-to-hub": ("", "a/b/c", "../x", "user/na me", "user/"),
        "--tasks": ("", "none", "cola,none", ",", "all,x"),
        "--variants": ("", "magic", "svd:k", "projective:k=x", "projective:size=1:bits=1", "::"),
        "--per-task": ("", "cola", "none:epochs=1", "cola:epochs=x", "cola:magic=1"),
        "--glue-dir": ("absent", str(root / "wrong" / "file")),
        "--card": ("absent", str(root / "wrong" / "empty"), str(root / "wrong" / "file")),
    }
    right = [word for word in _right(root, command) if flag != "--glue-dir" or word not in ("--tasks", "demo")]
    return [command, *right, flag, generator.choice(values.get(flag, ("", "\u0000")))]


def _outputs(root: Path, source: str) -> tuple[str, ...]:
    wrong = root / "wrong"
    names = (
        wrong / "foreign",
        wrong / "file",
        wrong / "file" / "x",
        wrong / "loop",
        wrong / "loop" / "x",
        root / "dense",
    )
    return (*map(str, names), str(Path(source) / "inside"), str(root / ("x" * 300)), "/proc/x", "a\u0000b")


def _bad_flag(root: Path, generator: random.Random) -> list[str]:
    command = generator.choice(list(_OPTIONS))
    flags = list(_flags(command))
    flag = generator.choice(flags)
    at = generator.randrange(2, len(flag))
    misspelt = flag[:at] + generator.choice(("", "x", "_", "é")) + flag[at + 1 :]
    shapes = [[misspelt], [f"{misspelt}=1"], ["-q"], ["---"], ["--frobnicate", "1"], [flag, "1", "--no-such"], ["-1"]]
    known = set(flags) | {"--config", "--format", "--debug", "--help", "--j", "--k", "--metric"}
    chosen = generator.choice(shapes)
    chosen = ["--frobnicate"] if chosen[0].split("=")[0] in known and chosen[-1] != "--no-such" else chosen
    return [command, *_right(root, command), *chosen]


def _bad_path(root: Path, generator: random.Random) -> list[str]:
    command = generator.choice(list(_OPTIONS))
    right = _right(root, command)
    wrong = [path for path in (root / "wrong").iterdir() if path.is_dir() or path.name in ("file", "loop")]
    names = [*map(str, wrong), "", "absent/folder", "a/b/c", "user/none", "../..", "x" * 300, "a\u0000b", "~nobody/x"]
    if command in ("expand", "push", "report"):
        names.append(str(root / "dense"))
    elif command in ("compress", "plan"):
        names.append(str(root / "compressed"))
    return [command, generator.choice(names), *right[1:]]


def _bad_words(root: Path, generator: random.Random) -> list[str]:
    command = generator.choice(list(_OPTIONS))
    right = _right(root, command)
    flags = [flag for flag, part in _flags(command).items() if kind_of(part) is not bool]
    ways: list[list[str]] = [
        [command, *right, generator.choice([*flags, "--config", "--format"])],
        [command.upper(), *right],
        [command[:-1], *right],
        ["", *right],
        [command, *right, "--config", "absent.yaml"],
        [command, *right, "--format", "xml"],
    ]
    ways += [[command, *right, "more", "words"]] if command != "report" else []
    ways += [[command, *right[1:]]]
    return generator.choice(ways)


def _bad_file(root: Path, generator: random.Random) -> list[str]:
    command = generator.choice(list(_OPTIONS))
    files = [path for path in (root / "wrong").iterdir() if path.suffix == ".yaml"]
    files += [root / "wrong" / "empty", root / "wrong" / "loop", root / "dense" / "model.safetensors", root / "absent"]
    return [command, *_right(root, command), "--config", str(generator.choice(files))]


def _bad_together(root: Path, generator: random.Random) -> list[str]:
    dense, out = str(root / "dense"), ["-o", str(root / "out")]
    ways = [
        "--k 3",
        "--j 16",
        "--k 121 --j 5",
        "--j 5 --bits 1",
        "--bits 1 --size 1MB",
        "--ratio 0.4 --j 5",
        "--j 5 --method svd --k 2",
        "--j 5 --ranks adaptive --k 1",
        "--j 5 --ranks adaptive --loss l1",
        "--j 5 --method random --loss huber",
        "--bits 0.001",
        "--size 3B",
        "--ratio 0.99",
        "--bits 40",
        "--j 5 --private",
        "--bits 1 --k 3",
        "--bits 1 --affine",
        "--method int4",
        "--method pq --bits 1",
        "--j 5 --codes int3",
        "--k 100 --j 5 --codes int8 --ranks adaptive --loss l1",
        "--j 5 --weights uniform --weights-exponent -1",
    ]
    return ["compress", dense, *generator.choice(ways).split(), *out]


_WAYS: dict[str, Callable[[Path, random.Random], list[str]]] = {
    "values": _bad_value,
    "flags": _bad_flag,
    "paths": _bad_path,
    "words": _bad_words,
    "config files": _bad_file,
    "combinations": _bad_together,
}
