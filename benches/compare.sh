#!/usr/bin/env bash
# The training step here and in PyTorch, taking turns on one quiet machine: medians of several rounds, and
# the ratio of each round's two.
#
#   benches/compare.sh [ROUNDS [PYTHON]]        default: 5 rounds, python3 with torch and transformers
#   MODEL=FOLDER benches/compare.sh …           the step of the model in a folder instead: batch 8, context 40, K 1, or with
#                                               the OPTIONS that are given, such as OPTIONS="--batch 64 --context 64"
#
# Install for PyTorch: pip install torch 'transformers==4.57.3'. Here: cargo build --release
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
python=${2:-python3}
gradmem=${CARGO_TARGET_DIR:-target}/release/gradmem
[ -x "$gradmem" ] || { echo "compare.sh: $gradmem is missing: cargo build --release" >&2; exit 2; }
"$python" -c 'import torch, transformers' || {
    echo "compare.sh: $python has no PyTorch: pip install torch 'transformers==4.57.3'" >&2
    exit 2
}
out=$(mktemp -d)
trap 'rm -r "$out"' EXIT

work=(
    "--batch 64 --context 64"
    "--batch 16 --context 64"
    "--batch 16 --context 232"
    "--batch 64 --context 29 --layers 2 --dim 64 --heads 2 --query 8 --queries 4"
    "--batch 64 --context 64 --steps 5"
)
iters=5
if [ -n "${MODEL:-}" ]; then
    work=("--model $MODEL ${OPTIONS:---batch 8 --context 40 --query 8 --steps 1 --write-lr 1e-3 --warmup 3}")
    iters=3
fi
for round in $(seq "$rounds"); do
    for i in "${!work[@]}"; do
        # shellcheck disable=SC2086  # the options are words
        { "$python" benches/torch_baseline.py ${work[$i]} --iters $iters
          "$gradmem" bench --json ${work[$i]} --iters $iters; } | paste -sd'\t' >>"$out/$i"
        echo "round $round of $rounds: ${work[$i]}" >&2
    done
done
for i in "${!work[@]}"; do printf '%s\t%s\n' "${work[$i]}" "$out/$i"; done | "$python" -c '
import json, statistics, sys
print("| work | PyTorch, s | gradmem, s | times faster (least … most) | memory, MiB | of PyTorch'"'"'s |")
print("|---|---|---|---|---|---|")
for line in sys.stdin:
    work, path = line.rstrip("\n").split("\t")
    pairs = [[json.loads(x) for x in row.split("\t")] for row in open(path)]
    column = lambda key, side: [pair[side][key] for pair in pairs]
    seconds = [column("seconds_per_step", side) for side in (0, 1)]
    bytes_ = [statistics.median(column("peak_rss_bytes", side)) for side in (0, 1)]
    ratios = [a / b for a, b in zip(*seconds)]
    torch, ours = map(statistics.median, seconds)
    print(f"| {work} | {torch:.3f} | {ours:.3f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f}) "
          f"| {bytes_[0] / 2**20:.0f}, {bytes_[1] / 2**20:.0f} | {bytes_[1] / bytes_[0]:.2f} |")
'
