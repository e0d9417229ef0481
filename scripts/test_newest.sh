#!/usr/bin/env bash
# The tests on the newest releases of transformers and accelerate, everything else as in constraints.txt: what breaks
# here will break for users. Run by hand, and before a release; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv-newest}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# With what a new transformers may ask for in a newer release.
grep -v -E '^(transformers|accelerate|huggingface_hub|hf-xet|tokenizers|safetensors)==' constraints.txt > "$constraints"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade -c "$constraints" transformers accelerate \
  -e '.[test]'
export PATH="$(cd "$venv/bin" && pwd):$PATH"
python -c 'import accelerate, transformers as t; print("transformers", t.__version__, "accelerate", accelerate.__version__)'
python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
