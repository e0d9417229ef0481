"""Damaged checkpoints for scripts/campaign.py: one change at a time, and what plain `from_pretrained` makes of it."""

import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from damaging import forget_digest
from tiny_models import VOCABULARY, compressed_model, tiny_model
from torch import Tensor

from projclust import ProjclustError, compress_model

OURS, THEIRS, SAME, DTYPE = "refused by projclust", "refused by transformers or safetensors", "same rows", "other dtype"
WARNED = "the same rows, and transformers warns of a head that it makes up"
UNKNOWABLE, SILENT = "other rows, and nothing could tell", "SILENTLY WRONG"
TRACEBACK, HANG, MEMORY, DIED = "TRACEBACK OF OURS", "HANG", "TOO MUCH MEMORY", "DIED"
SLOW = "transformers takes too long or too much before it asks projclust"
# In the order of the summary; none of the last five may be.
CLASSES = (OURS, THEIRS, SAME, DTYPE, WARNED, UNKNOWABLE, SLOW, SILENT, TRACEBACK, HANG, MEMORY, DIED)
FAULTS = (SILENT, TRACEBACK, HANG, MEMORY, DIED)

_SECONDS = 10
# A load may take twice the file and so much more, of which most is Python's.
_FLOOR = 64 * 2**20
# What a process may reserve beyond what it has, lest a wrong size takes the machine down.
_HEADROOM = 2**30
_CASES_A_PROCESS = 100


@dataclass(frozen=True)
class Kind:
    """A kind of compressed checkpoint: where it lies, intact, its class, and what an intact one gives."""

    name: str
    folder: Path
    auto: Any
    has_digest: bool
    rows: Tensor
    head: Tensor | None


@dataclass(frozen=True)
class Case:
    """What was damaged, and what came of it."""

    number: int
    kind: str
    damage: str
    verdict: str
    detail: str


# How a tiny model becomes each kind of checkpoint: the model, the way (tests/tiny_models.py), and what is done after.
KINDS: dict[str, tuple[str, str, str]] = {
    "float32": ("bert", "equal affine", ""),
    "float16": ("bert", "float16", ""),
    "unequal ranks": ("bert", "adaptive affine", ""),
    "int8": ("bert", "int8", ""),
    "int4": ("bert", "int4", ""),
    "auto": ("bert", "auto", ""),
    "auto, in shards": ("bert", "auto", "shards"),
    "float32, tied head": ("qwen3", "equal", ""),
    "auto, tied head": ("gpt2", "auto", ""),
    "float32, no digest": ("bert", "equal affine", "old"),
    "unequal ranks, no digest": ("bert", "adaptive affine", "old"),
    "auto, no digest": ("bert", "auto", "old"),
}


def make_kinds(root: Path) -> list[Kind]:
    """Write one intact checkpoint of every kind."""
    return [_make(name, root / str(number)) for number, name in enumerate(KINDS)]


def _make(name: str, folder: Path) -> Kind:
    model_name, how, after = KINDS[name]
    if how == "float16":
        model = compress_model(tiny_model(model_name), k=3, j=5, codes="float16")
    else:
        model = compressed_model(model_name, how)
    model.save_pretrained(folder, **({"max_shard_size": "12KB"} if after == "shards" else {}))
    if after == "old":
        forget_digest(folder)
    auto = transformers.AutoModelForMaskedLM if model_name == "bert" else transformers.AutoModelForCausalLM
    rows, head, _ = _read(auto, folder, model_name != "bert")
    return Kind(name, folder, auto, after != "old", rows, head)


@torch.no_grad()
def _read(auto: Any, folder: Path, with_head: bool) -> tuple[Tensor, Tensor | None, bool]:
    """(n, d) the rows of a checkpoint, (d, n) what its output layer makes of unit vectors, and whether that is new."""
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    rows = model.get_input_embeddings()(torch.arange(VOCABULARY))
    head = model.get_output_embeddings()(torch.eye(rows.shape[1], dtype=rows.dtype)) if with_head else None
    return rows, head, any("lm_head" in name for name in info["missing_keys"])


def run_cases(kinds: list[Kind], numbers: range, seed: int, scratch: Path) -> Iterator[Case]:
    """Damage and load, a hundred cases to a forked process, which a hang or a crash takes with it."""
    waiting = list(numbers)
    while waiting:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _work(kinds, waiting[:_CASES_A_PROCESS], seed, scratch, write)
        os.close(write)
        done = 0
        try:
            for line in _lines(read):
                case = Case(**json.loads(line))
                done += 1
                yield case
        finally:
            os.close(read)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        expected = min(_CASES_A_PROCESS, len(waiting))
        if done < expected:
            number = waiting[done]
            kind, _ = _kind_of(kinds, number, seed)
            yield Case(number, kind.name, "see --case", HANG if os.WIFSIGNALED(status) else DIED, f"status {status}")
            done += 1
        waiting = waiting[done:]


def _lines(pipe: int) -> Iterator[bytes]:
    """Lines until the other end closes, or is silent for too long."""
    rest = b""
    while select.select([pipe], [], [], 3 * _SECONDS)[0]:
        if not (more := os.read(pipe, 2**16)):
            return
        *lines, rest = (rest + more).split(b"\n")
        yield from lines


def _kind_of(kinds: list[Kind], number: int, seed: int) -> tuple[Kind, random.Random]:
    return kinds[number % len(kinds)], random.Random(f"{seed}/{number}")


def _work(kinds: list[Kind], numbers: list[int], seed: int, scratch: Path, pipe: int) -> None:
    """What a forked process does: it writes a line for each case, and ends."""
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    size = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    resource.setrlimit(resource.RLIMIT_AS, (1024 * size + _HEADROOM,) * 2)
    signal.signal(signal.SIGALRM, _too_late)
    try:
        for number in numbers:
            case = one_case(kinds, number, seed, scratch)
            os.write(pipe, (json.dumps(case.__dict__) + "\n").encode())
    finally:
        os._exit(0)


def _too_late(*_: object) -> None:
    raise TimeoutError("too late")


def one_case(kinds: list[Kind], number: int, seed: int, scratch: Path) -> Case:
    """Damage a copy and load it."""
    kind, generator = _kind_of(kinds, number, seed)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(kind.folder, scratch)
    file, damage = damage_one(scratch, generator)
    before = _peak(reset=True)
    verdict, detail = judged(kind, scratch, in_weights=file.endswith(".safetensors"))
    allowed = _FLOOR + 2 * sum(path.stat().st_size for path in scratch.iterdir())
    grown = _peak() - before
    if grown > allowed and verdict != SLOW:
        verdict, detail = MEMORY, f"{grown / 1e6:.0f} MB: {verdict}"
    return Case(number, kind.name, f"{file}: {damage}", verdict, detail)


def _peak(reset: bool = False) -> int:
    """The most bytes that this process has held, since the last time that it was reset."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def judged(kind: Kind, folder: Path, in_weights: bool) -> tuple[str, str]:
    """What a load of a damaged checkpoint came to, and details; `in_weights`: a safetensors file was damaged."""
    signal.alarm(_SECONDS)
    try:
        rows, head, made_up = _read(kind.auto, folder, kind.head is not None)
    except ProjclustError as error:
        return (TRACEBACK if "\n" in str(error).strip() else OURS), str(error)
    except BaseException as error:
        ours = _is_ours(error)
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, (TimeoutError, MemoryError)) or "allocate memory" in text:
            return (HANG if ours else SLOW), text
        if ours:
            return TRACEBACK, text + "".join(traceback.format_tb(error.__traceback__)[-2:])
        return THEIRS, text
    finally:
        signal.alarm(0)
    if torch.equal(rows, kind.rows) and (head is None or kind.head is None or torch.equal(head, kind.head)):
        return SAME, ""
    if torch.equal(rows, kind.rows) and made_up:
        return WARNED, ""
    which = "the output layer's" if torch.equal(rows, kind.rows) else "the rows"
    if rows.dtype != kind.rows.dtype and torch.allclose(rows.float(), kind.rows.float(), atol=0.05):
        return DTYPE, str(rows.dtype)
    return (UNKNOWABLE if in_weights and not kind.has_digest else SILENT), f"{which} are others"


def _is_ours(error: BaseException) -> bool:
    own = f"{os.sep}projclust{os.sep}"
    return any(own in frame.filename for frame in traceback.extract_tb(error.__traceback__))


# Values that are wrong in most places.
_VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 10**30, 1e308, float("nan"), 0.5, "")
_VALUES += ("float16", "bfloat16", "x" * 3000, "../../x", "auto", "\u0000", [], {}, [[]], [None], {"a": 1}, [1, 2, 3])


def damage_one(folder: Path, generator: random.Random) -> tuple[str, str]:
    """Damage one file of a checkpoint in one way; the file's name and what was done."""
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    indices = [path.name for path in folder.glob("*.index.json")]
    name = generator.choice(["config.json", "config.json", generator.choice(weights), generator.choice(weights)])
    if indices and generator.random() < 0.4:
        name = indices[0]
    file = folder / name
    content = file.read_bytes()
    if name.endswith(".json"):
        changed, what = _damaged_json(content, generator)
    else:
        changed, what = _damaged_weights(content, generator)
    if generator.random() < 0.01:
        file.unlink()
        return name, "removed"
    file.write_bytes(changed)
    return name, what


def _damaged_json(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    if generator.random() < 0.3:
        return _damaged_bytes(content, generator)
    data = json.loads(content)
    own = data.get("quantization_config", data)
    what = _change_json(data if generator.random() < 0.3 else own, generator)
    return json.dumps(data).encode(), what


def _damaged_weights(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    start = 8 + int.from_bytes(content[:8], "little")
    part = generator.choice(("length", "header", "header's bytes", "header's bytes", "data", "data", "whole"))
    if part == "length":
        length = generator.choice((0, 1, 2**63, 2**64 - 1, start, start - 9, generator.randrange(2 * len(content))))
        return length.to_bytes(8, "little") + content[8:], f"length {length}"
    if part == "header":
        header = json.loads(content[8:start])
        what = _change_header(header, generator)
        raw = json.dumps(header).encode()
        return len(raw).to_bytes(8, "little") + raw + content[start:], f"header {what}"
    if part == "header's bytes":
        changed, what = _damaged_bytes(content[8:start], generator)
        length = len(changed) if generator.random() < 0.5 else start - 8
        return length.to_bytes(8, "little") + changed + content[start:], f"header {what}"
    if part == "data":
        header = json.loads(content[8:start])
        first, last = header[name]["data_offsets"] if (name := _table_tensor(header, generator)) else (0, None)
        end = len(content) if last is None else start + last
        changed, what = _damaged_bytes(content[start + first : end], generator)
        return content[: start + first] + changed + content[end:], f"data of {name} {what}"
    return _damaged_bytes(content, generator)


def _table_tensor(header: dict[str, Any], generator: random.Random) -> str | None:
    """One of the embedding's tensors; now and then None, which stands for any place, and where there is none."""
    names = [name for name in header if any(part in name for part in ("word_emb", "embed_tokens", "wte"))]
    return generator.choice(names) if names and generator.random() < 0.8 else None


def _change_header(header: dict[str, Any], generator: random.Random) -> str:
    first, second = (_table_tensor(header, generator) or generator.choice(list(header)) for _ in range(2))
    how = generator.choice(("any", "dtype", "shape", "rename", "swap", "offsets", "drop", "copy"))
    entry = header[first]
    if how == "any" or not isinstance(entry, dict) or "dtype" not in entry:
        return _change_json(header, generator)
    if how == "dtype":
        entry["dtype"] = generator.choice(("F32", "I32", "U32", "F16", "BF16", "I16", "U8", "I8", "BOOL", "F64", "F8"))
    elif how == "shape":
        shape = list(entry["shape"])
        entry["shape"] = generator.choice((shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [2 * shape[0]], [0]))
    elif how == "rename":
        header[first + generator.choice(("x", ".weight", "\n", "/", "é"))] = header.pop(first)
    elif how == "swap":
        header[first], header[second] = header[second], header[first]
    elif how == "offsets":
        entry["data_offsets"] = generator.choice((header[second].get("data_offsets"), [0, 0], [-1, 4], [2**62, 2**63]))
    elif how == "drop":
        del header[first]
    else:
        header[second] = entry
    return f"{how} {first}"


def _change_json(data: Any, generator: random.Random) -> str:
    """One change somewhere in lists and objects."""
    place: Any = data
    key: Any = generator.choice(list(place))
    while isinstance(place[key], (dict, list)) and place[key] and generator.random() < 0.8:
        place = place[key]
        key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
    how = generator.choice(("value", "value", "near", "drop", "rename", "type", "nest"))
    old = place[key]
    if how == "near" and isinstance(old, (int, float)) and not isinstance(old, bool):
        place[key] = old + generator.choice((-1, 1, -8, 8))
    elif how == "near" and isinstance(old, str) and old:
        at = generator.randrange(len(old))
        place[key] = old[:at] + generator.choice("abc01-") + old[at + 1 :]
    elif how == "drop":
        del place[key]
    elif how == "rename" and isinstance(place, dict):
        place[f"{key}_"] = place.pop(key)
    elif how == "type":
        place[key] = old if old is None else str(old) if generator.random() < 0.5 else [old]
    elif how == "nest":
        nested: Any = old
        for _ in range(generator.choice((1, 50, 900))):
            nested = {"a": nested}
        place[key] = nested
    else:
        place[key] = generator.choice(_VALUES)
    return f"{how} {key} {old!r}"[:120]


def _damaged_bytes(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    found, at = bytearray(content), generator.randrange(len(content))
    end = min(len(found), at + generator.choice((1, 2, 8, 100)))
    ways: dict[str, Callable[[], object]] = {
        "bit": lambda: found.__setitem__(at, found[at] ^ 1 << generator.randrange(8)),
        "byte": lambda: found.__setitem__(at, generator.randrange(256)),
        "zeros": lambda: found.__setitem__(slice(at, end), bytes(end - at)),
        "ones": lambda: found.__setitem__(slice(at, end), b"\xff" * (end - at)),
        "reversed": lambda: found.__setitem__(slice(at, end), found[at:end][::-1]),
        "cut": lambda: found.__delitem__(slice(at, None)),
        "left out": lambda: found.__delitem__(slice(at, end)),
        "twice": lambda: found.__setitem__(slice(at, at), found[at:end]),
        "more": lambda: found.extend(bytes(end - at)),
        "empty": found.clear,
    }
    how = generator.choice([*list(ways)[:-1] * 4, "empty"])
    ways[how]()
    return bytes(found), f"{how} at {at}"


def counts(cases: list[Case]) -> dict[str, Counter[str]]:
    """How many cases of each kind came out how."""
    found: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for case in cases:
        found[case.kind][case.verdict] += 1
    return found


if sys.platform != "linux":
    raise SystemExit("the campaign forks, and watches memory by /proc: it needs Linux")
