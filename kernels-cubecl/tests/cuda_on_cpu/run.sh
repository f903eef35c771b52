#!/bin/sh
# Runs the attention kernels' tests on burn-cuda without a GPU: a replacement of CUDA's driver and compiler
# compiles the CUDA sources of CubeCL with g++ and runs them on the CPU. Needs g++ 12 or later.
#
#   ./run.sh [arguments of cargo test]      for example: ./run.sh f16 -- --nocapture
#
# CUDA_ON_CPU_TRACE=1           prints each launch with its shape, shared memory and time
# CUDA_ON_CPU_KEEP=folder       saves the CUDA sources that CubeCL generates
# CUDA_ON_CPU_COUNT=file        runs no kernel, and counts launches, their bytes and transfers (benches/count.sh)
# CUDA_ON_CPU_ORDER=forward     the order in which threads take turns between barriers: forward,
#                               reverse, or the seed of a random order (default: 0)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
built=$("$here/build.sh")

if [ -n "${CUDA_ON_CPU_KEEP:-}" ]; then
    mkdir -p "$CUDA_ON_CPU_KEEP"
    export CUDA_ON_CPU_KEEP="$(cd "$CUDA_ON_CPU_KEEP" && pwd)"
fi
# Set for the tests only: a change of CUDA_PATH would rebuild cudarc.
cd "$root"
# After `test`, where another --config among the arguments adds to it and does not replace it.
exec cargo test --config "target.'cfg(all())'.runner = ['env', 'CUDA_PATH=$here', 'LD_LIBRARY_PATH=$built']" \
    -p gradmem-kernels --features gradmem-kernels/cuda,gradmem-kernels/ndarray --test fused_cuda "$@"
