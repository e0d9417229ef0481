#!/usr/bin/env bash
# Everything CI checks: installs pinned versions into a virtual environment, lints, checks types, builds the pages of
# docs/ with every link checked (from Python 3.11 on), runs every test, one of which builds a wheel and uses it in an
# environment of its own.
# Tests on GLUE data run where PROJCLUST_GLUE_DIR names a folder of it. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}

[ -x "$venv/bin/python" ] || [ -x "$venv/Scripts/python" ] || "$python" -m venv "$venv"
bin=$venv/bin
[ -d "$bin" ] || bin=$venv/Scripts # on Windows
extras=test
if "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then extras=test,docs; fi
"$bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
export PATH="$(cd "$bin" && pwd):$PATH"

ruff check .
ruff format --check .
mypy
[ "$extras" = test ] || NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
# Two processes: most of the time goes into loading models, which one process does on one core.
python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
