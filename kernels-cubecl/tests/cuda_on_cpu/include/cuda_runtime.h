// The part of CUDA C++ that CubeCL generates, for g++.
#pragma once

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>

#include "cuda_on_cpu.h"

#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (cuda_on_cpu_thread()->threadIdx)
#define blockIdx (cuda_on_cpu_thread()->blockIdx)
#define blockDim (cuda_on_cpu_thread()->blockDim)
#define gridDim (cuda_on_cpu_thread()->gridDim)
constexpr int warpSize = 32;

typedef cuda_on_cpu::Dim uint3;
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// Threads

inline void __syncthreads(int line = __builtin_LINE()) { cuda_on_cpu_sync(line); }
inline void __threadfence() {}
inline void __syncwarp(unsigned = ~0u, int line = __builtin_LINE()) {
    cuda_on_cpu_warp("__syncwarp", line, false, [](void **) {}, nullptr);
}

namespace cuda_on_cpu {

template <class T> struct Shuffle {
    T value, result;
    int from;
};

template <class T> T shuffle(const char *call, int line, T value, int from) {
    Shuffle<T> mine{value, value, from < 0 || from > 31 ? int(cuda_on_cpu_thread()->lane) : from};
    auto run = [](void **lanes) {
        for (int lane = 0; lane < 32; lane++)
            if (auto *to = (Shuffle<T> *)lanes[lane]) {
                auto *source = (Shuffle<T> *)lanes[to->from];
                // The value of a missing lane is undefined.
                memset((void *)&to->result, 0xff, sizeof(T));
                if (source)
                    to->result = source->value;
            }
    };
    cuda_on_cpu_warp(call, line, false, run, &mine);
    return mine.result;
}

struct Ballot {
    bool vote;
    unsigned votes, present;
};

inline Ballot ballot(const char *call, int line, bool vote) {
    Ballot mine{vote, 0, 0};
    auto run = [](void **lanes) {
        Ballot all{};
        for (int lane = 0; lane < 32; lane++)
            if (auto *one = (Ballot *)lanes[lane]) {
                all.votes |= unsigned(one->vote) << lane;
                all.present |= 1u << lane;
            }
        for (int lane = 0; lane < 32; lane++)
            if (lanes[lane])
                *(Ballot *)lanes[lane] = all;
    };
    cuda_on_cpu_warp(call, line, false, run, &mine);
    return mine;
}

} // namespace cuda_on_cpu

#define CUDA_ON_CPU_SHUFFLE(name, from)                                                               \
    template <class T> T name(unsigned, T value, int by, int line = __builtin_LINE()) {                \
        [[maybe_unused]] int lane = cuda_on_cpu_thread()->lane;                                       \
        return cuda_on_cpu::shuffle(#name, line, value, from);                                        \
    }
CUDA_ON_CPU_SHUFFLE(__shfl_sync, by & 31)
CUDA_ON_CPU_SHUFFLE(__shfl_up_sync, lane - by)
CUDA_ON_CPU_SHUFFLE(__shfl_down_sync, lane + by)
CUDA_ON_CPU_SHUFFLE(__shfl_xor_sync, lane ^ by)

#define CUDA_ON_CPU_VOTE(name, result)                                                                \
    inline unsigned name(unsigned, int vote, int line = __builtin_LINE()) {                           \
        auto all = cuda_on_cpu::ballot(#name, line, vote);                                            \
        return result;                                                                                \
    }
CUDA_ON_CPU_VOTE(__ballot_sync, all.votes)
CUDA_ON_CPU_VOTE(__any_sync, all.votes != 0)
CUDA_ON_CPU_VOTE(__all_sync, all.votes == all.present)
inline unsigned __activemask() { cuda_on_cpu_fail("__activemask is not supported"); }

// Atomics: the blocks of a kernel that has any run one after the other.

#define CUDA_ON_CPU_ATOMIC(name, result)                                                              \
    template <class T, class U> T name(T *at, U by) {                                                  \
        T old = *at, value = T(by);                                                                    \
        *at = result;                                                                                  \
        return old;                                                                                    \
    }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + value)
CUDA_ON_CPU_ATOMIC(atomicSub, old - value)
CUDA_ON_CPU_ATOMIC(atomicExch, value)
CUDA_ON_CPU_ATOMIC(atomicMin, old < value ? old : value)
CUDA_ON_CPU_ATOMIC(atomicMax, old > value ? old : value)
CUDA_ON_CPU_ATOMIC(atomicAnd, old & value)
CUDA_ON_CPU_ATOMIC(atomicOr, old | value)
CUDA_ON_CPU_ATOMIC(atomicXor, old ^ value)
template <class T> T atomicCAS(T *at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    T old = *at;
    if (!memcmp(&old, &expected, sizeof(T)))
        *at = value;
    return old;
}

// Floating point

#define CUDA_ON_CPU_CHOOSE(name, for_floats, op)                                                      \
    template <class A, class B, class T = std::common_type_t<A, B>>                                   \
        requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)                                  \
    T name(A a, B b) {                                                                                \
        if constexpr (std::is_floating_point_v<T>)                                                    \
            return for_floats(T(a), T(b));                                                            \
        else                                                                                          \
            return T(a) op T(b) ? T(a) : T(b);                                                        \
    }
CUDA_ON_CPU_CHOOSE(max, fmax, >)
CUDA_ON_CPU_CHOOSE(min, fmin, <)

inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rhypotf(float x, float y) { return 1 / hypotf(x, y); }
inline double rhypot(double x, double y) { return 1 / hypot(x, y); }
// The fast functions compute with powers of two, with the additional rounding error.
inline float __expf(float x) { return exp2f(x * 1.44269504f); }
inline float __logf(float x) { return log2f(x) * 0.693147181f; }
inline float __powf(float x, float y) { return exp2f(y * log2f(x)); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fdividef(float x, float y) { return x / y; }

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned long long __brevll(unsigned long long x) {
    unsigned long long reversed = 0;
    for (int bit = 0; bit < 64; bit++)
        reversed |= (x >> bit & 1) << (63 - bit);
    return reversed;
}
inline unsigned __brev(unsigned x) { return __brevll(x) >> 32; }
inline int __mulhi(int x, int y) { return (long long)x * y >> 32; }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned long long)x * y >> 32; }
inline long long __mul64hi(long long x, long long y) { return (__int128)x * y >> 64; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned __int128)x * y >> 64;
}
