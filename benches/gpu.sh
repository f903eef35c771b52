#!/usr/bin/env bash
# What the CUDA backend computes and how fast, on a machine with an NVIDIA card, in one table.
#
#   benches/gpu.sh pack [FOLDER]   anywhere, without a card, a driver or a toolkit: makes the kit
#   FOLDER/gpu.sh [TABLE.md]       there, without a network: runs it and writes the table
#
# There it needs the driver, the run-time compiler (libnvrtc, no newer than the driver) and CUDA's
# headers: a toolkit, or the pip packages that PyTorch brings and nvidia-cuda-crt. With PyTorch and transformers the same
# training step is timed in both. The card's clocks, modes and partitions are left as they are.
#
# MAX_SEQ (4096), ITERS (10) and STEP_ITERS (5) shorten a run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

pack() {
  cd "$here/.."
  local kit=${1:-target/gpu-kit} target=${CARGO_TARGET_DIR:-target}/release tests
  mkdir -p "$kit"
  # One set of features, so that everything below the two packages is compiled once.
  local what=(--release -p gradmem -p gradmem-kernels --no-default-features
    --features gradmem/command,gradmem/flex,gradmem/cuda,gradmem-kernels/ndarray,gradmem-kernels/cuda)
  cargo build "${what[@]}" --bin gradmem --example products
  tests=$(cargo test "${what[@]}" --test fused_cuda --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
  strip -o "$kit/gradmem" "$target/gradmem"
  strip -o "$kit/products" "$target/examples/products"
  strip -o "$kit/kernel-tests" "$tests"
  cp benches/gpu.sh benches/torch_baseline.py "$kit/"
  cp -r tests/oracle "$kit/"
  local size
  size=$(stat -c %s "$kit/gradmem")
  echo "$kit/gradmem has $((size >> 20)) MiB"
  ((size < 70 << 20)) || { echo "that is more than 70 MiB" >&2; exit 1; }
}

# CUDA's libraries and headers, where they are not where programs look for them.
find_cuda() {
  local folder
  if [ -z "${CUDA_PATH:-}" ] && [ ! -e /usr/local/cuda/include/cuda_runtime.h ]; then
    for folder in $(python3 -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null); do
      local header
      header=$(find "$folder" -name cuda_runtime.h -path '*/include/*' | head -n 1)
      if [ -n "$header" ]; then
        CUDA_PATH=$(dirname "$(dirname "$header")")
        export CUDA_PATH
      fi
      LD_LIBRARY_PATH=$(find "$folder" -name 'libnvrtc*.so*' -printf '%h\n' | sort -u | paste -sd:):${LD_LIBRARY_PATH:-}
      export LD_LIBRARY_PATH
    done
  fi
}

# field NAME: the number of that name in a line of JSON
field() { sed -n "s/.*\"$1\": *\([-0-9.eE+]*\).*/\1/p"; }
# of NAME UNIT FORMAT: the same, divided by a unit; a dash where there is none
of() { field "$1" | awk -v u="$2" -v f="$3" '{ printf f, $1 / u; any = 1 } END { if (!any) printf "–" }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (a > 0 && b > 0) printf "%.2f", a / b; else printf "–" }'; }
# attempt COMMAND…: its last line, or nothing if it failed (out of memory, no PyTorch); stderr is shown
attempt() { { timeout 600 "$@" || true; } | tail -n 1 | grep '^{' || true; }

attention_rows() { # DTYPE
  echo "| seq | forward, ms | backward, ms | double backward, ms | TFLOP/s | device, MiB | reference: double backward, ms | device, MiB | faster by | memory |"
  echo "|---|---|---|---|---|---|---|---|---|---|"
  local seq fused plain
  for ((seq = 64; seq <= max_seq; seq *= 2)); do
    fused=$(attempt "$here/gradmem" bench attention --backend cuda --seq $seq --dtype "$1" --iters "$iters" --json)
    plain=$(attempt "$here/gradmem" bench attention --backend cuda --seq $seq --dtype "$1" --iters "$iters" --json --attention reference)
    echo "| $seq" \
      "| $(of forward_seconds 1e-3 %.3f <<<"$fused")" \
      "| $(of backward_seconds 1e-3 %.3f <<<"$fused")" \
      "| $(of double_backward_seconds 1e-3 %.3f <<<"$fused")" \
      "| $(of double_backward_flops_per_second 1e12 %.2f <<<"$fused")" \
      "| $(of peak_device_bytes 1048576 %.0f <<<"$fused")" \
      "| $(of double_backward_seconds 1e-3 %.3f <<<"$plain")" \
      "| $(of peak_device_bytes 1048576 %.0f <<<"$plain")" \
      "| $(ratio "$(field double_backward_seconds <<<"$plain")" "$(field double_backward_seconds <<<"$fused")")" \
      "| $(ratio "$(field peak_device_bytes <<<"$fused")" "$(field peak_device_bytes <<<"$plain")") |"
  done
}

step_rows() { # options of `bench` for the model
  echo "| context | batch | f32, s | tf32, s | bf16, s | device, MiB | reference attention, s | PyTorch, f32, s | device, MiB | faster than PyTorch by, f32 |"
  echo "|---|---|---|---|---|---|---|---|---|---|"
  local context batch size f32 tf32 bf16 plain torch
  for ((context = 64; context <= max_seq; context *= 4)); do
    batch=$((4096 / context))
    batch=$((batch < 1 ? 1 : batch))
    size=("$@" --batch "$batch" --context "$context" --iters "$step_iters")
    f32=$(attempt "$here/gradmem" bench "${size[@]}" --backend cuda --json)
    tf32=$(attempt "$here/gradmem" bench "${size[@]}" --backend cuda --precision tf32 --json)
    bf16=$(attempt "$here/gradmem" bench "${size[@]}" --backend cuda --precision bf16 --json)
    plain=$(attempt "$here/gradmem" bench "${size[@]}" --backend cuda --attention reference --json)
    torch=$(attempt python3 "$here/torch_baseline.py" "${size[@]}" --device cuda)
    echo "| $context | $batch" \
      "| $(of seconds_per_step 1 %.4f <<<"$f32")" \
      "| $(of seconds_per_step 1 %.4f <<<"$tf32")" \
      "| $(of seconds_per_step 1 %.4f <<<"$bf16")" \
      "| $(of peak_device_bytes 1048576 %.0f <<<"$f32")" \
      "| $(of seconds_per_step 1 %.4f <<<"$plain")" \
      "| $(of seconds_per_step 1 %.4f <<<"$torch")" \
      "| $(of peak_device_bytes 1048576 %.0f <<<"$torch")" \
      "| $(ratio "$(field seconds_per_step <<<"$torch")" "$(field seconds_per_step <<<"$f32")") |"
  done
}

roof() { # DTYPE
  attempt "$here/gradmem" bench attention --backend cuda --seq 64 --batch 1 --heads 1 --dtype "$1" --matmul --json |
    of matmul_flops_per_second 1e12 %.1f
}

run() {
  local table=${1:-gpu.md}
  max_seq=${MAX_SEQ:-4096} iters=${ITERS:-10} step_iters=${STEP_ITERS:-5}
  find_cuda
  local card
  card=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)
  echo "card: $card"
  # Compiling the kernels is most of it: a process for each test, and for each case.
  local each cases
  each=$(($(nproc) < 8 ? $(nproc) : 8))
  if "$here/kernel-tests" --list --format terse | sed -n 's/: test$//p' |
    xargs -P "$each" -I{} "$here/kernel-tests" --exact {} --nocapture >"$table.log" 2>&1; then
    tests="pass: $(grep -h 'largest relative error' "$table.log" | sed 's/.*largest relative error //' | paste -sd';')"
  else
    tests="FAIL, see $table.log"
  fi
  echo "kernel tests: $tests"
  cases=$(find "$here/oracle" -mindepth 1 -maxdepth 1 -type d | wc -l)
  find "$here/oracle" -mindepth 1 -maxdepth 1 -type d -print0 | sort -z |
    xargs -0 -P "$each" -n 1 sh -c '"$0/gradmem" parity "$1" --backend cuda | tail -n 1 | sed "s|^|$(basename "$1"): |"' "$here" >"$table.parity" || true
  parity="$(grep -c 'within the' "$table.parity") of $cases, the worst of these $(sed 's/.*worst \([^:]*\):.*/\1/' <(grep 'within the' "$table.parity") | sort -g | tail -n 1)"
  echo "whole steps: $parity"
  {
    echo "# On $card"
    echo
    echo "Kernel tests against f64: $tests."
    echo
    echo "Whole steps in f32 against the numbers of another implementation, within 1e-4: $parity."
    echo
    echo "## Products: rows × length of the sum × columns"
    echo
    "$here/products" || echo "FAILED"
    echo
    for dtype in f32 bf16; do
      echo "## Attention in $dtype: batch 16, 12 heads, head dim 64"
      echo
      echo "A 4096³ product of Burn's reaches $(roof $dtype) TFLOP/s in $dtype on this card. TFLOP/s count the twelve products the double backward needs at least, under the mask. Memory is what the process has taken from the card."
      echo
      attention_rows $dtype
      echo
    done
    echo "gradmem's memory is what it has taken from the card, PyTorch's what its tensors needed at most."
    echo
    echo "## A training step: 4 layers, d_model 128, 4 heads, K 2"
    echo
    step_rows
    echo
    echo "## A training step: 30 layers, d_model 576, 9 heads, vocabulary 49,152, K 1"
    echo
    max_seq=$((max_seq < 1024 ? max_seq : 1024))
    step_rows --layers 30 --dim 576 --heads 9 --vocab 49152 --steps 1
  } >"$table.new"
  mv "$table.new" "$table"
  cat "$table"
}

case ${1:-} in
  pack) shift; pack "$@" ;;
  -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0" ;;
  *) run "$@" ;;
esac
