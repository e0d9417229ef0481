#!/usr/bin/env bash
# The tests on the oldest versions pyproject.toml admits: Python 3.10, torch 2.6, transformers 5.9. Downloads gigabytes
# where the registry has no CPU build of that torch; run by hand before a release, not in CI.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.10}
venv=${VENV:-.venv-floor}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'torch==2.6.0' 'transformers==5.9.0' -e '.[test]'
PATH="$(cd "$venv/bin" && pwd):$PATH" python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
