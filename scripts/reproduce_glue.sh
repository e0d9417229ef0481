#!/usr/bin/env bash
# What compressed embeddings cost MiniLM on GLUE: configs/glue_proof.yaml, or with --form roberta
# configs/glue_proof_roberta.yaml. Each task and seed is a process of its own, and so many of them run at the same time on
# one device (one for each core, for training a small model waits for the processor); then comes one report on all.
#
#   PROJCLUST_GLUE_DIR=path/to/glue bash scripts/reproduce_glue.sh [OPTIONS] [-- OPTIONS OF GLUE-EVAL]
#
#   --form distilbert|roberta  the class of model (distilbert)
#   --device cuda|cpu          where to compute (cuda)
#   --jobs N                   processes at the same time (16)
#   --seconds N                stop the parts that still run after so many seconds, and report what they measured
#   --tasks LIST, --seeds LIST instead of those of the config, the longest task first
#   --rows TASK=N,...          at most so many rows of a task's splits, instead of the config's limits
#   --model DIR                MiniLM in that form (made in the output folder; needs projclust[demo])
#   -o DIR                     the output folder (glue-proof)
#
# Measurements lie in DIR/parts/TASK-SEED, what their runs say in DIR/logs, the report in DIR/report. What was finished is
# not measured again. PROJCLUST says how to call projclust, if it is not installed: PROJCLUST='python3 -m projclust'.
# The exit code is 0, 1 if some part was not finished, 2 for a mistake.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

fail() { echo "error: $1" >&2; exit 2; }
is_count() { [[ $1 =~ ^[1-9][0-9]*$ ]] || fail "$2 takes a whole number above 0, not '$1'"; }

form=distilbert device=cuda jobs=16 seconds='' tasks='' seeds='' rows='' model='' out=glue-proof
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    --form | --device | --jobs | --seconds | --tasks | --seeds | --rows | --model | -o)
      [ $# -ge 2 ] || fail "$1 needs a value"
      if [ "$1" = -o ]; then out=$2; else declare "${1#--}=$2"; fi
      shift 2
      ;;
    *) fail "there is no option $1: -h lists them, and those of glue-eval come after --" ;;
  esac
done
case $form in distilbert) config=glue_proof ;; roberta) config=glue_proof_roberta ;; *) fail "--form takes distilbert or roberta, not '$form'" ;; esac
case $device in cuda | cpu) ;; *) fail "--device takes cuda or cpu, not '$device'" ;; esac
is_count "$jobs" --jobs
[ -z "$seconds" ] || is_count "$seconds" --seconds
[[ -z $rows || $rows =~ ^[a-z0-9]+=[1-9][0-9]*(,[a-z0-9]+=[1-9][0-9]*)*$ ]] || fail "--rows takes TASK=N,..., not '$rows'"
config=$root/configs/$config.yaml
tasks=${tasks:-$(sed -n 's/^tasks: //p' "$config")} seeds=${seeds:-$(sed -n 's/^seeds: //p' "$config")}
[[ $seeds =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--seeds takes numbers with commas between them, not '$seeds'"
read -ra projclust <<< "${PROJCLUST:-projclust}"
"${projclust[@]}" --version > /dev/null 2>&1 ||
  fail "'${projclust[*]}' does not run: install projclust, or set PROJCLUST='python3 -m projclust'"

mkdir -p "$out/parts" "$out/logs"
if [ -z "$model" ]; then
  model=$out/minilm-$form
  if [ ! -d "$model" ]; then
    "${PYTHON:-python3}" "$root/benchmarks/minilm_forms.py" "$form" "$out/unfinished-$form" > "$out/logs/model" 2>&1 ||
      fail "MiniLM cannot be made: $(tail -n 1 "$out/logs/model")"
    mv "$out/unfinished-$form" "$model"
  fi
fi

declare -A started=()
mistake='' unfinished=''

# start TASK SEED: a part, until the time is over.
start() {
  local part=$1-$2 left=0 limit=()
  if [ -n "$seconds" ]; then
    left=$((seconds - SECONDS))
    [ "$left" -gt 0 ] || { unfinished+=" $part"; return 0; }
  fi
  [[ ,$rows, =~ ,$1=([0-9]+), ]] && limit=(--limit "${BASH_REMATCH[1]}")
  echo "$part ..."
  timeout -k 60 "$left" "${projclust[@]}" glue-eval "$model" --config "$config" --device "$device" "${limit[@]}" \
    "${more[@]}" --tasks "$1" --seeds "$2" -o "$out/parts/$part" > "$out/logs/$part" 2>&1 < /dev/null &
  started[$part]=$!
}

stop() { seconds=1; [ -z "$(jobs -rp)" ] || kill -TERM $(jobs -rp); }
trap stop INT TERM HUP
more=("$@")
for task in ${tasks//,/ }; do
  for seed in ${seeds//,/ }; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
    start "$task" "$seed"
  done
done
for part in "${!started[@]}"; do
  code=0
  while wait "${started[$part]}" || code=$?; kill -0 "${started[$part]}" 2> /dev/null; do code=0; done
  [ "$code" != 2 ] || mistake=$part
  [ "$code" = 0 ] || unfinished+=" $part"
  # A mistake is the same one in every part: it is told once, below.
  [ "$code" = 0 ] || [ "$code" = 2 ] || echo "$part: $(tail -n 1 "$out/logs/$part") (exit code $code)" >&2
done

measured=()
for results in "$out"/parts/*/results.json; do
  [ ! -e "$results" ] || measured+=("${results%/*}")
done
[ ${#measured[@]} = 0 ] || "${projclust[@]}" report "${measured[@]}" -o "$out/report"
[ -z "$mistake" ] || fail "$(sed -n 's/^error: //p' "$out/logs/$mistake" | tail -n 1)"
[ -z "$unfinished" ] || { echo "not finished:$unfinished; the same command goes on with them" >&2; exit 1; }
