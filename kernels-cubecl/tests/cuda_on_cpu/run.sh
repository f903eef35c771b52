#!/bin/sh
# Runs the attention kernels' tests on burn-cuda without a GPU: a replacement of CUDA's driver and compiler
# compiles the CUDA sources of CubeCL with g++ and runs them on the CPU. Needs g++ 12 or later.
#
#   ./run.sh [arguments of cargo test]      for example: ./run.sh f16 -- --nocapture
#
# CUDA_ON_CPU_TRACE=1           prints each launch with its shape, shared memory and time
# CUDA_ON_CPU_KEEP=folder       saves the CUDA sources that CubeCL generates
# CUDA_ON_CPU_ORDER=forward     the order in which threads take turns between barriers: forward,
#                               reverse, or the seed of a random order (default: 0)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
built=${CARGO_TARGET_DIR:-$root/target}/cuda_on_cpu

mkdir -p "$built"
built=$(cd "$built" && pwd)
if [ -n "$(find "$here" -newer "$built/libcuda.so.1" -type f 2>&1)" ]; then
    rm -rf "$built/kernels"
    # With _FORTIFY_SOURCE, longjmp could not switch between stacks.
    g++ -O2 -U_FORTIFY_SOURCE -std=c++20 -Wall -Wextra -shared -fPIC -pthread -Wl,-soname,libcuda.so.1 \
        "$here/driver.cpp" -ldl -o "$built/libcuda.so.1"
    for name in libcuda.so libnvrtc.so libnvrtc.so.13; do
        ln -sf libcuda.so.1 "$built/$name"
    done
fi

if [ -n "${CUDA_ON_CPU_KEEP:-}" ]; then
    mkdir -p "$CUDA_ON_CPU_KEEP"
    export CUDA_ON_CPU_KEEP="$(cd "$CUDA_ON_CPU_KEEP" && pwd)"
fi
# Set for the tests only: a change of CUDA_PATH would rebuild cudarc.
cd "$root"
# After `test`, where another --config among the arguments adds to it and does not replace it.
exec cargo test --config "target.'cfg(all())'.runner = ['env', 'CUDA_PATH=$here', 'LD_LIBRARY_PATH=$built']" \
    -p gradmem-kernels --features gradmem-kernels/cuda,gradmem-kernels/ndarray --test fused_cuda "$@"
