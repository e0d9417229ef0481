#!/usr/bin/env bash
# A fresh machine to a compressed model and a report: makes a virtual environment, installs pinned versions, compresses
# the packaged MiniLM, and compares it with SVD and with a random partition of equal size. Needs Python >= 3.10; no Hub.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
out=quickstart

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing into $venv ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
export PATH="$(cd "$venv/bin" && pwd):$PATH" HF_HUB_OFFLINE=1

mkdir -p "$out"
minilm=$(python -c 'import sys; sys.path.insert(0, "scripts"); import minilm_forms; print(minilm_forms.minilm_folder())')
for method in projective svd random; do
  echo
  echo "\$ projclust compress MiniLM --ratio 0.4 --method $method"
  projclust compress "$minilm" --ratio 0.4 --method "$method" -o "$out/minilm-$method" --overwrite
done
echo
python scripts/quickstart_report.py "$minilm" "$out"
