#!/bin/sh
# Builds the replacement of CUDA's driver and compiler where it is not built yet, and prints its folder: with that in
# LD_LIBRARY_PATH and this one as CUDA_PATH, programs run their CUDA kernels on the CPU. Needs g++ 12 or later.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
built=${CARGO_TARGET_DIR:-$here/../../../target}/cuda_on_cpu
mkdir -p "$built"
built=$(cd "$built" && pwd)
if [ -n "$(find "$here" -newer "$built/libcuda.so.1" -type f 2>&1)" ]; then
    rm -rf "$built/kernels"
    # With _FORTIFY_SOURCE, longjmp could not switch between stacks.
    g++ -O2 -U_FORTIFY_SOURCE -std=c++20 -Wall -Wextra -shared -fPIC -pthread -Wl,-soname,libcuda.so.1 \
        "$here/driver.cpp" -ldl -o "$built/libcuda.so.1.$$"
    # In one step: another program may be about to load it.
    mv "$built/libcuda.so.1.$$" "$built/libcuda.so.1"
    for name in libcuda.so libnvrtc.so libnvrtc.so.13; do
        ln -sf libcuda.so.1 "$built/$name"
    done
fi
echo "$built"
