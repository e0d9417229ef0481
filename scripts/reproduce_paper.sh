#!/usr/bin/env bash
# The paper's experiments. Without arguments: on MiniLM in DistilBERT and RoBERTa form, which needs no Hub but the data:
#   PROJCLUST_GLUE_DIR=path/to/glue bash scripts/reproduce_paper.sh
# With `hub`: on distilbert-base-uncased and roberta-base, data from the Hub as well; meant for a GPU.
#   bash scripts/reproduce_paper.sh hub
# A run that was interrupted goes on where it was. More arguments go to `projclust glue-eval` (--seeds 0, --tasks rte).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
out=${OUT:-paper}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
export PATH="$(cd "$venv/bin" && pwd):$PATH"
mkdir -p "$out"

if [ "${1:-}" = hub ]; then
  shift
  projclust glue-eval distilbert-base-uncased --config configs/distilbert_paper.yaml -o "$out/distilbert" "$@"
  projclust glue-eval roberta-base --config configs/roberta_paper.yaml -o "$out/roberta" "$@"
  projclust report "$out/distilbert" "$out/roberta" -o "$out/report"
else
  for form in distilbert roberta; do
    if [ ! -d "$out/minilm-$form" ]; then
      python benchmarks/minilm_forms.py "$form" "$out/unfinished-$form"
      mv "$out/unfinished-$form" "$out/minilm-$form"
    fi
    projclust glue-eval "$out/minilm-$form" --config "configs/minilm_$form.yaml" -o "$out/$form" "$@"
  done
  projclust report "$out/distilbert" "$out/roberta" -o "$out/report"
fi
