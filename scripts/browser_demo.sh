#!/usr/bin/env bash
# Semantic search in a browser: codes the packaged MiniLM's embedding at half a bit a weight, exports it as ONNX with an
# int8 body, and serves examples/browser on this machine alone. Nothing is fetched from a Hub or a CDN: the model comes as
# a Python package, transformers.js from npm. Needs Python >= 3.10, npm and node.
#
#     bash scripts/browser_demo.sh [PORT]      # 8000; 0 makes the page and serves nothing
set -euo pipefail
cd "$(dirname "$0")/.."

port=${1:-8000}
venv=${VENV:-.venv}
page=browser-demo

if ! [ -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
if [ -z "${NO_INSTALL:-}" ]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,onnx]'
fi
python="$venv/bin/python"
export HF_HUB_OFFLINE=1

mkdir -p "$page/models"
minilm=$("$python" -c 'import sys; sys.path.insert(0, "benchmarks"); import minilm_forms; print(minilm_forms.minilm_folder())')
"$python" -m projclust compress "$minilm" --bits 0.5 -o "$page/coded" --overwrite
"$python" -m projclust export "$page/coded" -o "$page/models/minilm" --to onnx --body int8 --overwrite
"$python" -c 'import json, sys
for line in sys.stdin: print(json.loads(line)["sentence"])' <projclust/glue/demo/train.jsonl >"$page/sentences.txt"
cp examples/browser/index.html examples/browser/search.js "$page"
[ -f "$page/vendor/transformers.min.js" ] || bash scripts/browser_vendor.sh "$page/vendor"

[ "$port" = 0 ] && exit
echo
echo "open http://127.0.0.1:$port"
exec "$python" -m http.server "$port" --bind 127.0.0.1 --directory "$page"
