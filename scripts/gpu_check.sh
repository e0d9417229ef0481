#!/usr/bin/env bash
# What projclust does and takes on this machine's GPU, in at most 8 minutes: the tests that run on any device, then the
# solver, a large table, coding, lookups and output heads, as ratios to floors measured in the same run. Needs Python,
# torch for that GPU and this tree; no weights, for tables are synthetic. What else is missing is installed beside what
# is there, if a package index can be reached. Everything goes into one Markdown file, to be pasted under "On a GPU" in
# docs/benchmarks.md; a step that fails or takes too long is recorded there, the others still run, and the exit code is
# then 1.
#
#   bash scripts/gpu_check.sh [--device cuda|cpu] [--quick] [-o FILE]
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
device=cuda quick= output=gpu_check.md
usage() { sed -n 's/^#   //p' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    --device | -o)
      [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
      if [ "$1" = -o ]; then output=$2; else device=$2; fi
      shift 2
      ;;
    --quick) quick=--quick; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
case $device in cuda | cpu) ;; *) echo "error: --device must be cuda or cpu" >&2; exit 2 ;; esac

limit=480
started=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: > "$work/summary"
: > "$work/sections"
: > "$work/notes"
failed=0

left() { echo $((limit - (SECONDS - started))); }

# The packages that the steps need, less torch, that are not here or too old.
missing() {
  "$python" - <<'PY'
import importlib.metadata as metadata
import re

NEEDED = ("accelerate", "huggingface_hub", "numpy", "pytest", "safetensors", "scikit-learn", "transformers")


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


asked = re.findall(r'"([\w-]+)>=([\d.]+)"', open("pyproject.toml", encoding="utf-8").read())
for name, least in asked:
    if name in NEEDED:
        try:
            found = numbers(metadata.version(name))
        except metadata.PackageNotFoundError:
            found = []
        if found < numbers(least):
            print(f"{name}>={least}")
PY
}

# Writes the report with what is known so far.
report() {
  {
    cat "$work/head"
    echo
    echo "| step | result | seconds |"
    echo "| --- | --- | ---: |"
    cat "$work/summary" "$work/notes" "$work/sections"
  } > "$output"
}

# step TITLE SECONDS FORMAT COMMAND...: runs a command for at most so long, with the interpreter, and adds what it prints,
# which is Markdown or plain text, to the report.
step() {
  local title=$1 most=$2 format=$3 begun=$SECONDS code=0 result=passed
  shift 3
  [ "$most" -le "$(left)" ] || most=$(left)
  echo "$title ..."
  : > "$work/out"
  : > "$work/err"
  if [ "$most" -lt 5 ]; then
    result="not run: the $limit seconds are over"
  else
    timeout -k 5 "$most" "$python" "$@" > "$work/out" 2> "$work/err" < /dev/null || code=$?
    [ "$code" = 0 ] || result="failed (exit code $code)"
    [ "$code" != 124 ] && [ "$code" != 137 ] || result="stopped after $most s"
  fi
  [ "$result" = passed ] || failed=1
  echo "  $result, $((SECONDS - begun)) s"
  echo "| $title | $result | $((SECONDS - begun)) |" >> "$work/summary"
  {
    printf '\n#### %s\n\n`python %s`\n\n' "$title" "$*"
    # Headings of benchmarks are of a lower level here.
    if [ "$format" = markdown ]; then sed 's/^## \(.*\)/**\1**/' "$work/out"; else fenced "$work/out"; fi
    [ "$result" = passed ] || { printf '\n%s\n\n' "$result" && fenced "$work/err"; }
  } >> "$work/sections"
  report
}

# The last lines of plain text.
fenced() {
  echo '```text'
  tail -n 40 "$1"
  echo '```'
}

if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: $python has no torch that sees a CUDA device; --device cpu checks the processor" >&2
  exit 2
fi

absent=$(missing)
if [ -n "$absent" ]; then
  echo "installing $(echo $absent) ..."
  grep -v -E '^(torch|numpy)==' constraints.txt > "$work/constraints.txt"
  # Into an environment that sees what is there, so that the machine's own, virtual or not, stays as it is.
  if "$python" -m venv "$work/venv" > "$work/install" 2>&1 &&
    "$python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' \
      > "$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth" &&
    timeout 120 "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
      -c "$work/constraints.txt" $absent >> "$work/install" 2>&1; then
    python=$work/venv/bin/python
  else
    printf '\nNot installed, and too old or not there: %s.\n' "$(echo $absent)" >> "$work/notes"
  fi
fi

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
"$python" - "$device" > "$work/head" <<'PY'
import datetime
import importlib.metadata as metadata
import os
import platform
import subprocess
import sys

import torch

sys.path.insert(0, "benchmarks")
from machine import processor


def printed(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def version(name):
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"no {name}"


cores = f"{len(os.sched_getaffinity(0))} cores of {processor()}"
facts = [datetime.date.today().isoformat()]
if sys.argv[1] == "cuda":
    title = torch.cuda.get_device_name()
    driver = printed("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader")
    facts += [f"CUDA {torch.version.cuda}", f"driver and memory {driver.splitlines()[0]}" if driver else "", cores]
else:
    title, facts = processor(), [*facts, cores]
facts += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
facts += [version("numpy"), version("transformers"), f"projclust at {printed('git', 'rev-parse', '--short', 'HEAD')}"]
print(f"### {title}\n")
print(f"`scripts/gpu_check.sh`; {', '.join(fact for fact in facts if not fact.endswith(' at ') and fact)}.")
PY

# Targets are those for a data-centre GPU.
target() { [ "$device" != cuda ] || [ -n "$quick" ] || echo "--target $1"; }
if [ -n "$quick" ]; then
  large="--rows 4000 --columns 64 --k 8 --j 16" coded="" long="--rows 6000 --columns 64" bits=2
else
  large="--rows 262144 --columns 640 --k 32 --j 160" coded="--rows 30522 --columns 384"
  long="--rows 250037 --columns 384" bits=0.5
fi
bench="--device $device $quick"
tests="tests/test_devices.py tests/tables tests/coding tests/clustering"
[ -z "$quick" ] || tests="tests/coding/test_trellis.py tests/tables/test_coded.py"

step "Tests on the device" 150 text -m pytest $tests -q -m device --device "$device" -p no:cacheprovider
step "The solver" 60 markdown benchmarks/bench_solver.py $bench --parts default,memory,unequal $(target 2)
step "A large table" 75 markdown benchmarks/bench_solver.py $bench $large --parts default,memory $(target 10)
step "Coding" 60 markdown benchmarks/bench_codes.py $bench --table $coded --bits $bits $(target 1)
step "Coding a table of many languages" 60 markdown benchmarks/bench_codes.py $bench --table $long --bits $bits $(target 5)
step "Lookups and output heads" 75 markdown benchmarks/bench_lookup.py $bench --synthetic
step "Coded lookups and output heads" 75 markdown benchmarks/bench_codes.py $bench --synthetic --bits $bits

echo "written: $output"
exit $failed
