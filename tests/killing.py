"""Running the command line in a process of its own and killing it at a chosen file-system call."""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

# Imports once, and runs each line's command in a process forked off, which a call takes seconds less for. A run stops
# for good at the n-th call about a path with `part` in it, so that the test can kill it right there.
PROGRAM = """
import json, os, sys, time
import accelerate, datasets, matplotlib.figure, pyarrow.parquet, sklearn.metrics
from transformers import BertForSequenceClassification, BertTokenizerFast
import projclust.jobs.compress, projclust.jobs.glue_eval
from projclust.cli.app import run
EVENTS = "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree", "shutil.copyfile"
def start(limit, part, arguments):
    seen = 0
    def watch(event, values):
        nonlocal seen
        if event in EVENTS and any(part in str(value) for value in values[:2]):
            seen += 1
            if seen == limit:
                print("here", flush=True)
                time.sleep(1000)
    print(os.getpid(), flush=True)
    sys.addaudithook(watch)
    run(arguments)
    print("done", flush=True)
    time.sleep(1000)
for line in sys.stdin:
    if not hasattr(os, "fork") or os.fork() == 0:
        start(*json.loads(line))
    os.wait()
    print("gone", flush=True)
"""


@cache
def _program() -> "subprocess.Popen[str]":
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(program.kill)
    return program


def killed_at(call: int, part: str, arguments: Sequence[str]) -> bool:
    """Run until the n-th call about a path with `part` in it and kill there; False when the run ended before."""
    program = _program()
    assert program.stdin is not None
    assert program.stdout is not None
    print(json.dumps([call, part, list(arguments)]), file=program.stdin, flush=True)
    process = int(program.stdout.readline())
    end = next(line.strip() for line in program.stdout if line.strip() in ("here", "done", "gone"))
    assert end != "gone", "the run crashed"
    os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    if hasattr(os, "fork"):
        assert program.stdout.readline().strip() == "gone"
    else:  # on Windows each run is a program of its own
        program.wait()
        _program.cache_clear()
    return end == "here"
