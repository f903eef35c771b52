// The functions of the driver that kernels call.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace cuda_on_cpu {

struct Dim {
    unsigned x, y, z;
};

// One thread of a block, which is a fiber.
struct Thread {
    Dim threadIdx, blockIdx, blockDim, gridDim;
    unsigned lane;
    char *shared;
    size_t shared_bytes;
};

} // namespace cuda_on_cpu

extern "C" {
// A fiber only asks for itself, so that the compiler may cache the result.
cuda_on_cpu::Thread *cuda_on_cpu_thread() __attribute__((const));
void cuda_on_cpu_sync(int line);
// Waits for the warp's other lanes; the last one calls `run` with the pointer of each lane, null for lanes
// that have ended.
void cuda_on_cpu_warp(const char *call, int line, bool whole, void (*run)(void **), void *brought);
// Prints the message with its location, and aborts.
[[noreturn]] void cuda_on_cpu_fail(const char *format, ...) __attribute__((format(printf, 1, 2), cold));
}

namespace cuda_on_cpu {

// An array with bounds checks.
template <class T> struct Checked {
    T *data;
    uint64_t length;
    const char *name;

    template <class I> T &operator[](I index) const {
        if (__builtin_expect(uint64_t(index) >= length, 0))
            cuda_on_cpu_fail("%s[%lld], which has %llu elements of %zu bytes", name, (long long)index,
                             (unsigned long long)length, sizeof(T));
        return data[index];
    }
    operator T *() const { return data; }
    T *operator+() const { return data; }
};

} // namespace cuda_on_cpu
