#!/bin/bash
# Ctrl-C at a random moment of `gradmem train kv-quick 2>&1 | tee log`, COUNT times: the run must end by itself, and the
# same command must then end with the weights of a run that was not interrupted.
#
#   GRADMEM=target/release/gradmem tests/interrupts.sh [COUNT [STEPS]]      100 times, 40 steps
set -uo pipefail
program=$(realpath "${GRADMEM:-target/release/gradmem}")
count=${1:-100} steps=${2:-40}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
settings=(train kv-quick "train.steps=$steps" train.eval_every=10 train.log_every=5 data.valid_samples=50)
start=$(date +%s%N)
"$program" "${settings[@]}" --run whole >/dev/null 2>&1 || exit 1
time_ms=$((($(date +%s%N) - start) / 1000000))
RANDOM=1 good=0 early=0 done=0
for ((n = 1; n <= count; n++)); do
  rm -rf run
  # A session of its own, as a terminal's foreground job: Ctrl-C reaches both sides of the pipe.
  setsid bash -c '"$@" 2>&1 | tee log >/dev/null' _ "$program" "${settings[@]}" --run run &
  job=$!
  sleep "$(awk -v r=$RANDOM -v t=$time_ms 'BEGIN { print r / 32768 * t / 1000 }')"
  kill -INT -- -"$job" 2>/dev/null
  # bash may outlive the interrupt of its children for a moment; a training that goes on would do so for long.
  for ((i = 0; i < 300; i++)); do pgrep -g "$job" >/dev/null || break; sleep 0.1; done
  if pgrep -g "$job" >/dev/null; then echo "$n: it goes on after Ctrl-C"; kill -KILL -- -"$job"; continue; fi
  wait "$job" 2>/dev/null
  [ -e run/last.safetensors ] || early=$((early + 1))
  "$program" "${settings[@]}" --run run >/dev/null 2>&1
  if cmp -s run/best.safetensors whole/best.safetensors && cmp -s run/metrics.jsonl whole/metrics.jsonl; then
    good=$((good + 1))
  else
    echo "$n: other weights or metrics"
  fi
done
echo "$good of $count ended and went on to equal weights and metrics; $early of them before the first step was saved"
[ "$good" -eq "$count" ]
