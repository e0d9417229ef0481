"""Running the command line in a process of its own and killing it at a chosen file-system call."""

import os
import subprocess
import sys
from collections.abc import Sequence

# Stops for good at the n-th call about a path with `part` in it, so that the test can kill it right there.
PROGRAM = """
import sys, time
limit, part, seen = int(sys.argv[1]), sys.argv[2], 0
EVENTS = "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree", "shutil.copyfile"
def watch(event, arguments):
    global seen
    if event in EVENTS and any(part in str(argument) for argument in arguments[:2]):
        seen += 1
        if seen == limit:
            print("here", flush=True)
            time.sleep(1000)
sys.addaudithook(watch)
from projclust.cli.app import run
code = run(sys.argv[3:])
print("done", flush=True)
sys.exit(code)
"""


def killed_at(call: int, part: str, arguments: Sequence[str]) -> bool:
    """Run until the n-th call about a path with `part` in it and kill there; False when the run ended before."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(call), part, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = ""
    for line in process.stdout:
        if line.strip() in ("here", "done"):
            break
    process.kill()
    process.wait()
    return line.strip() == "here"
