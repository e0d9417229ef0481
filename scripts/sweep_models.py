"""Compresses a tiny random model of every class of transformers that embeds tokens, and sees whether all of it works.

By hand: python scripts/sweep_models.py [NAME ...] [-o sweep.json] [--docs docs/models.md]

Every class is compressed with float factors, with --bits and with int8 codes; saved and loaded, which must give the
same outputs; made dense again, which must give nearly the same; and trained for a step. Results are written as they
come, and what a file holds already is not done again, but for classes that are named. With --docs the tables at
the end of docs/models.md are written.
"""

import argparse
import copy
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# One hang costs one class.
_SECONDS = 120
_WAYS: dict[str, dict[str, Any]] = {
    "floats": {"k": 2, "j": 6, "restarts": 1, "max_iter": 3},
    "bits": {"bits": 3.5, "weights": "uniform", "sensitivity": "none"},
    "int8": {"k": 2, "j": 6, "restarts": 1, "max_iter": 3, "codes": "int8"},
}


def main() -> int:
    """Sweep the classes that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="classes; default: all that embed tokens")
    parser.add_argument("-o", "--output", type=Path, default=Path("sweep.json"))
    parser.add_argument("--docs", type=Path, help="write the table to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _work()
    from sweep_table import HEADING, counts, page
    from sweep_tiny import classes

    known = json.loads(options.output.read_text()) if options.output.is_file() else {}
    wanted = [name for name, _ in classes() if not options.names or name in options.names]
    for name, result in _results([name for name in wanted if name not in known or options.names]):
        known[name] = result
        options.output.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        if result["verdict"] != "no tokens":
            print(f"{name}: {result['verdict']} {result.get('why', '')}", flush=True)
    minutes = sum(result.get("seconds", _SECONDS) for result in known.values()) / 60
    print(f"{counts(known)}, in {minutes:.0f} minutes of one processor")
    if options.docs:
        guide = options.docs.read_text().partition(HEADING)[0] if options.docs.exists() else ""
        options.docs.write_text(guide + page(known, version("transformers")))
    return int(any(result["verdict"] == "fails" for result in known.values()))


def _results(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The result of every class, made by child processes that do one after the other until one hangs or dies."""
    while names:
        child = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        selector = selectors.DefaultSelector()
        selector.register(child.stdout, selectors.EVENT_READ)
        try:
            child.stdout.readline()  # it has imported everything
            while names:
                name, *names = names
                child.stdin.write(f"{name}\n")
                child.stdin.flush()
                answer = child.stdout.readline() if selector.select(_SECONDS) else None
                if not answer:
                    what = f"it takes more than {_SECONDS} s" if answer is None else "the process died"
                    yield name, {"verdict": "fails", "why": what}
                    break
                yield name, json.loads(answer)
        finally:
            child.kill()
            child.wait()


def _work() -> int:
    """A child process: names of classes in, results out, a line for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # models print
    warnings.filterwarnings("ignore")
    import torch
    from sweep_tiny import classes

    import projclust  # noqa: F401

    torch.set_num_threads(1)
    configs = dict(classes())
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        name = line.strip()
        started = time.process_time()
        result = _judged(name, configs[name])
        answers.write(json.dumps({**result, "seconds": round(time.process_time() - started, 1)}) + "\n")
        answers.flush()
    return 0


def _judged(name: str, config: str) -> dict[str, Any]:
    import transformers
    from sweep_tiny import NoTokens, build, short

    try:
        kind = getattr(transformers, name)
        # That of a model's text where a class reads no more of it.
        model, inputs = build(kind, kind.config_class or getattr(transformers, config))
    except NoTokens:
        return {"verdict": "no tokens"}
    except Exception as error:  # whatever a class makes of such a configuration
        return {"verdict": "not built", "why": " ".join(str(error).split())}
    result: dict[str, Any] = {"model_type": model.config.model_type, "inputs": sorted(inputs), "ways": {}}
    for way, recipe in _WAYS.items():
        try:
            result["ways"][way], result["head"] = _tried(copy.deepcopy(model), recipe, inputs)
        except Exception as error:  # what is looked for
            result["ways"][way] = short(error)
    answers = result["ways"]
    if all(answer == "works" for answer in answers.values()):
        return {**result, "verdict": "works"}
    if all(answer.startswith(("works", "ProjclustError")) for answer in answers.values()):
        verdict = "refused" if not any(answer == "works" for answer in answers.values()) else "partly refused"
        return {**result, "verdict": verdict, "why": _one(answers)}
    return {**result, "verdict": "fails", "why": _one(answers)}


def _one(answers: dict[str, str]) -> str:
    """What several ways say, each thing once."""
    said: dict[str, list[str]] = {}
    for way, answer in answers.items():
        if answer != "works":
            said.setdefault(answer.removeprefix("ProjclustError: "), []).append(way)
    parts = [answer if len(ways) == len(answers) else f"{'/'.join(ways)}: {answer}" for answer, ways in said.items()]
    return "; ".join(parts)


def _tried(model: Any, recipe: dict[str, Any], inputs: dict[str, Any]) -> tuple[str, str]:
    """Whether one way works, and what became of the output layer; what does not work raises."""
    from sweep_tiny import output
    from torch import nn

    from projclust import compress_model, unfreeze
    from projclust.tables import CompressedTable

    try:
        learns = _learns(copy.deepcopy(model), inputs)
    except ValueError:  # Reformer is trained on sequences of certain lengths
        learns = None
    compress_model(model, **recipe)
    expected = output(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not info[what], f"{what}: {sorted(map(str, info[what]))[:2]}"
        assert isinstance(loaded.get_input_embeddings(), CompressedTable), "it is not compressed after the load"
        _same(output(loaded, inputs), expected, 1e-4, "loaded")
        loaded.save_pretrained(Path(folder) / "again")
        _same(output(type(model).from_pretrained(Path(folder) / "again"), inputs), expected, 1e-4, "saved again")
    _same(output(loaded.dequantize(), inputs), expected, 1e-2, "expanded")
    assert learns is None or _learns(unfreeze(model), inputs) == learns, "the embedding gets no gradient"
    head = model.get_output_embeddings()
    stays = "dense" if isinstance(head, nn.Linear) else "none"
    return "works", "compressed" if isinstance(head, CompressedTable) else stays


def _learns(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether a step of training gives the embedding a gradient."""
    from sweep_tiny import output

    output(model.train(), inputs, no_grad=False).float().square().mean().backward()
    table = model.get_input_embeddings()
    gradients = [part.grad for part in getattr(table, "primary", table).parameters()]
    return any(part is not None and bool(part.any()) for part in gradients)


def _same(found: Any, expected: Any, tolerance: float, when: str) -> None:
    lost = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    assert lost <= tolerance, f"{when}: outputs differ by {lost:.2g}"


if __name__ == "__main__":
    sys.exit(main())
