"""How much sooner a sweep of `glue-eval` is done on two machines than on one.

    python benchmarks/bench_ray.py [--model FOLDER] [--seeds 6] [--lose]

24 cells (four variants, six seeds) of the packaged demonstration, on clusters of Ray with one node and with two, all on
this machine, one core each; then, with `--lose`, on two of which one is killed once the first cell is done. Prints the
seconds from start to end, their ratio to one node, and whether results.json is the same but for the times. Needs the
extra ray and two cores that have nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from minilm_forms import minilm_folder

DRIVER = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
nodes, lose, out = int(sys.argv[1]), sys.argv[2] == "lose", Path(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
others = [cluster.add_node(num_cpus=1) for _ in range(nodes - 1)]
def lose_a_node():
    while not list(out.glob("cells/*.json")):
        time.sleep(0.05)
    cluster.remove_node(others[0], allow_graceful=False)
if lose:
    threading.Thread(target=lose_a_node, daemon=True).start()
from projclust.cli import main
sys.argv = ["projclust", "glue-eval", *sys.argv[4:], "-o", str(out), "--engine", f"ray:{cluster.address}"]
main()
"""
VARIANTS = "dense,projective:bits=0.5,projective:bits=1,int4"


def run(model: Path, seeds: int, nodes: int, lose: bool, out: Path) -> tuple[float, list[dict[str, Any]]]:
    """The seconds of a sweep, and its rows without times."""
    numbers = ",".join(map(str, range(seeds)))
    arguments = ["--tasks", "demo", "--limit", "100", "--variants", VARIANTS, "--seeds", numbers]
    arguments += ["--baseline-epochs", "1", "--epochs", "1", "--device", "cpu"]
    command = [sys.executable, "-c", DRIVER, str(nodes), "lose" if lose else "keep", str(out), str(model), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    started = time.perf_counter()
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if ran.returncode:
        sys.exit(ran.stderr[-2000:])
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    return seconds, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="A dense model's folder (the packaged MiniLM).")
    parser.add_argument("--seeds", type=int, default=6, help="Seeds, of four cells each (6).")
    parser.add_argument("--lose", action="store_true", help="Also kill one of two nodes.")
    arguments = parser.parse_args()
    model = arguments.model or minilm_folder()
    cases = [("one node", 1, False), ("two nodes", 2, False)]
    cases += [("two nodes, one killed", 2, True)] if arguments.lose else []
    print("| cluster | cells | seconds | x one node | the same results |")
    print("| --- | ---: | ---: | ---: | --- |")
    first: tuple[float, list[dict[str, Any]]] | None = None
    for name, nodes, lose in cases:
        with tempfile.TemporaryDirectory() as folder:
            found = run(model, arguments.seeds, nodes, lose, Path(folder) / "out")
        first = first or found
        same = "yes" if found[1] == first[1] else "NO"
        print(f"| {name} | {len(found[1])} | {found[0]:.0f} | {found[0] / first[0]:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()
