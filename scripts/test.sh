#!/usr/bin/env bash
# Everything CI checks: installs pinned versions into a virtual environment, lints, checks types, runs every test, one of
# which builds a wheel and uses it in an environment of its own.
# Tests on GLUE data run where PROJCLUST_GLUE_DIR names a folder of it. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
export PATH="$(cd "$venv/bin" && pwd):$PATH"

ruff check .
ruff format --check .
mypy
# Two processes: most of the time goes into loading models, which one process does on one core.
python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
