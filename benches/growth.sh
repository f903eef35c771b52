#!/usr/bin/env bash
# How a training step's time and memory grow: one size doubled at a time, each measured in a process of its
# own, and the slope of the logarithms between the two largest (1 is proportional).
#
#   benches/growth.sh [PYTHON]        default: python3; no packages are needed
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
gradmem=${CARGO_TARGET_DIR:-target}/release/gradmem
[ -x "$gradmem" ] || { echo "growth.sh: $gradmem is missing: cargo build --release" >&2; exit 2; }

curve() { # TITLE OPTION VALUES MORE…
    local title=$1 option=$2 values=$3
    shift 3
    for value in $values; do
        printf '%s\t%s\t' "$title" "$value"
        "$gradmem" bench --json "$@" "$option" "$value" --iters 3 --warmup 1
    done
}

{
    curve "context" --context "64 128 256 512 1024" --batch 16
    curve "batch" --batch "8 16 32 64 128"
    curve "d_model" --dim "64 128 256 512" --batch 16
    curve "K, unrolled, context 232" --steps "1 2 4 8" --batch 16 --context 232 --meta-gradient unrolled
    curve "K, replay, context 232" --steps "1 2 4 8" --batch 16 --context 232 --meta-gradient replay
    curve "K, test time, context 232" --steps "1 2 4 8" --batch 16 --context 232 --test-time
} | "$python" -c '
import json, math, sys
curves = {}
for line in sys.stdin:
    title, value, result = line.rstrip("\n").split("\t")
    curves.setdefault(title, []).append((int(value), json.loads(result)))
print("| grows | values | seconds a step | slope | memory, MiB | slope |")
print("|---|---|---|---|---|---|")
for title, points in curves.items():
    (a, first), (b, second) = points[-2:]
    slope = lambda key: "%.2f" % (math.log(second[key] / first[key]) / math.log(b / a))
    row = lambda key, scale, form: ", ".join(form % (point[key] / scale) for _, point in points)
    values = ", ".join(str(value) for value, _ in points)
    time, memory = "seconds_per_step", "peak_rss_bytes"
    cells = [title, values, row(time, 1, "%.3f"), slope(time), row(memory, 2**20, "%.0f"), slope(memory)]
    print("| " + " | ".join(cells) + " |")
'
