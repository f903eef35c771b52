// 16-bit floats and pairs of them: every operation is computed in f32 and rounded.
#pragma once

#include "cuda_runtime.h"

namespace cuda_on_cpu {

template <class T>
concept Number = std::is_arithmetic_v<T>;

template <class Format> struct Small {
    uint16_t bits;

    Small() = default;
    template <Number T> Small(T x) : bits(Format::round(float(x))) {}
    template <class Other> explicit Small(Small<Other> x) : Small(float(x)) {}
    operator float() const { return Format::widen(bits); }
    template <Number T> explicit operator T() const { return T(float(*this)); }

    friend Small operator-(Small a) { return -float(a); }
#define CUDA_ON_CPU_COMPARE(op) \
    friend bool operator op(Small a, Small b) { return float(a) op float(b); }
    CUDA_ON_CPU_COMPARE(==)
    CUDA_ON_CPU_COMPARE(!=)
    CUDA_ON_CPU_COMPARE(<)
    CUDA_ON_CPU_COMPARE(<=)
    CUDA_ON_CPU_COMPARE(>)
    CUDA_ON_CPU_COMPARE(>=)
};

template <class Format> struct alignas(4) Pair {
    Small<Format> x, y;

    friend Pair operator-(Pair a) { return {-a.x, -a.y}; }
};

#define CUDA_ON_CPU_OPERATOR(op)                                                                      \
    template <class F> Small<F> operator op(Small<F> a, Small<F> b) { return float(a) op float(b); }   \
    template <class F> Small<F> &operator op##=(Small<F> &a, Small<F> b) { return a = a op b; }        \
    template <class F> Pair<F> operator op(Pair<F> a, Pair<F> b) { return {a.x op b.x, a.y op b.y}; }  \
    template <class F> Pair<F> &operator op##=(Pair<F> &a, Pair<F> b) { return a = a op b; }
CUDA_ON_CPU_OPERATOR(+)
CUDA_ON_CPU_OPERATOR(-)
CUDA_ON_CPU_OPERATOR(*)
CUDA_ON_CPU_OPERATOR(/)

struct Half {
    static uint16_t round(float x) { return __builtin_bit_cast(uint16_t, _Float16(x)); }
    static float widen(uint16_t bits) { return __builtin_bit_cast(_Float16, bits); }
};

struct Brain {
    static uint16_t round(float x) {
        uint32_t bits = __builtin_bit_cast(uint32_t, x);
        return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static float widen(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
};

} // namespace cuda_on_cpu

#define CUDA_ON_CPU_FUNCTION(name, result)                                                            \
    template <class F> cuda_on_cpu::Small<F> h##name(cuda_on_cpu::Small<F> small) {                    \
        float x = small;                                                                              \
        return result;                                                                                \
    }                                                                                                 \
    template <class F> cuda_on_cpu::Pair<F> h2##name(cuda_on_cpu::Pair<F> pair) {                      \
        return {h##name(pair.x), h##name(pair.y)};                                                    \
    }
CUDA_ON_CPU_FUNCTION(exp, expf(x))
CUDA_ON_CPU_FUNCTION(log, logf(x))
CUDA_ON_CPU_FUNCTION(sin, sinf(x))
CUDA_ON_CPU_FUNCTION(cos, cosf(x))
CUDA_ON_CPU_FUNCTION(sqrt, sqrtf(x))
CUDA_ON_CPU_FUNCTION(rsqrt, 1 / sqrtf(x))
CUDA_ON_CPU_FUNCTION(ceil, ceilf(x))
CUDA_ON_CPU_FUNCTION(floor, floorf(x))
CUDA_ON_CPU_FUNCTION(trunc, truncf(x))
CUDA_ON_CPU_FUNCTION(rint, rintf(x))

#define CUDA_ON_CPU_CHOICE(name, function)                                                            \
    template <class F> cuda_on_cpu::Small<F> name(cuda_on_cpu::Small<F> a, cuda_on_cpu::Small<F> b) {  \
        return function(a, b);                                                                        \
    }                                                                                                 \
    template <class F> cuda_on_cpu::Pair<F> name##2(cuda_on_cpu::Pair<F> a, cuda_on_cpu::Pair<F> b) {  \
        return {name(a.x, b.x), name(a.y, b.y)};                                                      \
    }
CUDA_ON_CPU_CHOICE(__hmax, fmaxf)
CUDA_ON_CPU_CHOICE(__hmin, fminf)

template <class F> bool __hisnan(cuda_on_cpu::Small<F> x) { return isnan(float(x)); }
template <class F> int __hisinf(cuda_on_cpu::Small<F> x) { return isinf(float(x)); }
