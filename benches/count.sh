#!/usr/bin/env bash
# Counts what a training step asks of a CUDA card, without one: launches of kernels, the bytes of their buffers, transfers, and the
# time that the host takes to ask for it. The stand-in of kernels-cubecl/tests/cuda_on_cpu counts, and runs no kernel; a
# step is the difference between two runs, of which one takes a step more.
#
#   benches/count.sh PROGRAM [--most LAUNCHES UPLOADS READBACKS] [arguments of `gradmem bench`]
#
# PROGRAM is a `gradmem` with the feature cuda, with `fusion` or without:
#   cargo build --no-default-features --features command,cuda && benches/count.sh target/debug/gradmem
# With --most it fails where a step takes more than that.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$1
shift
most=()
if [ "${1-}" = --most ]; then
  most=("$2" "$3" "$4")
  shift 4
fi
stand_in=kernels-cubecl/tests/cuda_on_cpu
built=$($stand_in/build.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for steps in 2 3; do
  CUDA_ON_CPU_COUNT=$work/$steps CUDA_PATH=$PWD/$stand_in LD_LIBRARY_PATH=$built \
    "$program" bench --backend cuda --warmup 2 --iters $steps --json "$@" >"$work/$steps.json"
done

# Each line of a count: how many, bytes, what.
awk -v most="${most[*]}" '
  function kind(name) {
    if (name !~ /^kernel /) return name
    if (name ~ /backward_(queries|keys|sums)|kernel forward_f/) return "attention"
    if (name ~ /kernel (norm|activate)|swiglu|rotary|reorder|split_heads|join_heads|token_losses|adamw/) return "layers"
    if (name ~ /matmul|gemv|gemm|exact_product/) return "products"
    if (name ~ /reduce|shared_sum|sum_of_parts/) return "reductions"
    if (name ~ /copy|slice|contiguous/) return "copies"
    if (name ~ /elemwise_fuse/) return "fused elementwise"
    if (name ~ /full_kernel/) return "fills"
    return "elementwise and others"
  }
  {
    times = $1; bytes = $2; $1 = $2 = ""; sub(/^ +/, "")
    sign = FNR == NR ? -1 : 1
    count[kind($0)] += sign * times; size[kind($0)] += sign * bytes
    if ($0 ~ /^kernel /) { launches += sign * times; moved += sign * bytes }
  }
  END {
    printf "%8s %10s  %s\n", "times", "MB", "what"
    for (what in count) if (count[what]) printf "%8d %10.2f  %s\n", count[what], size[what] / 1e6, what | "sort -rn"
    close("sort -rn")
    printf "%8d %10.2f  launches in all\n", launches, moved / 1e6
    split(most, limit)
    if (most != "" && (launches > limit[1] || count["host to device"] > limit[2] || count["device to host"] > limit[3])) {
      printf "more than %d launches, %d uploads or %d read-backs\n", limit[1], limit[2], limit[3]
      exit 1
    }
  }' "$work/2" "$work/3"
sed 's/.*"seconds_per_step":\([0-9.e-]*\).*/\1 s of the host for a step/' "$work/3.json"
