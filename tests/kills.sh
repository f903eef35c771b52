#!/bin/bash
# SIGKILL of a random process at a random moment of `mpirun -n 2 gradmem train kv-quick`, COUNT times: the job must end by
# itself within half a minute, and one process must then end with the files of a run that nothing happened to.
#
#   GRADMEM=target/release/gradmem tests/kills.sh [COUNT [STEPS]]      100 times, 40 steps; built with --features mpi
set -uo pipefail
program=$(realpath "${GRADMEM:-target/release/gradmem}")
count=${1:-100} steps=${2:-40}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
export RAYON_NUM_THREADS=1
settings=(train kv-quick --plain "train.steps=$steps" train.eval_every=5 train.log_every=5 train.micro_batch=16
  data.valid_samples=20)
together() { mpirun --allow-run-as-root --oversubscribe -n 2 "$program" "${settings[@]}" --run run >/dev/null 2>&1; }
start=$(date +%s%N)
together || exit 1
time_ms=$((($(date +%s%N) - start) / 1000000))
mv run whole
RANDOM=1 good=0 early=0 late=0
for ((n = 1; n <= count; n++)); do
  rm -rf run
  together &
  job=$!
  sleep "$(awk -v r=$RANDOM -v t=$time_ms 'BEGIN { print r / 32768 * t / 1000 }')"
  mapfile -t processes < <(pgrep -P "$(pgrep -P "$job" mpirun || echo 0)")
  [ ${#processes[@]} -gt 0 ] && kill -KILL "${processes[RANDOM % ${#processes[@]}]}" 2>/dev/null
  for ((i = 0; i < 300; i++)); do kill -0 "$job" 2>/dev/null || break; sleep 0.1; done
  if kill -0 "$job" 2>/dev/null; then 
    echo "$n: it goes on after SIGKILL"
    pkill -KILL -P "$job"
    continue
  fi
  wait "$job" 2>/dev/null && late=$((late + 1))
  [ -e run/last.safetensors ] || early=$((early + 1))
  "$program" "${settings[@]}" --run run >/dev/null 2>&1
  if cmp -s run/last.safetensors whole/last.safetensors && cmp -s run/best.safetensors whole/best.safetensors &&
    cmp -s run/metrics.jsonl whole/metrics.jsonl; then
    good=$((good + 1))
  else
    echo "$n: other files"
  fi
done
echo "$good of $count ended and went on to equal files; $early of them before the first checkpoint, $late after the end"
[ "$good" -eq "$count" ]
