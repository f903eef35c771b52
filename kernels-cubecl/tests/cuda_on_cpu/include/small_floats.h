// Floats of 16 bits: every operation is done in f32 and rounded.
#pragma once

#include "cuda_runtime.h"

namespace cuda_on_cpu {

template <class Format> struct Small {
    uint16_t bits;

    Small() = default;
    template <class T>
        requires std::is_arithmetic_v<T>
    Small(T x) : bits(Format::round(float(x))) {}
    template <class Other> explicit Small(Small<Other> x) : bits(Format::round(float(x))) {}

    operator float() const { return Format::widen(bits); }
    template <class T>
        requires std::is_arithmetic_v<T>
    explicit operator T() const {
        return T(float(*this));
    }

    friend Small operator+(Small a, Small b) { return float(a) + float(b); }
    friend Small operator-(Small a, Small b) { return float(a) - float(b); }
    friend Small operator*(Small a, Small b) { return float(a) * float(b); }
    friend Small operator/(Small a, Small b) { return float(a) / float(b); }
    friend Small operator-(Small a) { return -float(a); }
    Small &operator+=(Small b) { return *this = *this + b; }
    Small &operator-=(Small b) { return *this = *this - b; }
    Small &operator*=(Small b) { return *this = *this * b; }
    Small &operator/=(Small b) { return *this = *this / b; }
    friend bool operator==(Small a, Small b) { return float(a) == float(b); }
    friend bool operator!=(Small a, Small b) { return float(a) != float(b); }
    friend bool operator<(Small a, Small b) { return float(a) < float(b); }
    friend bool operator<=(Small a, Small b) { return float(a) <= float(b); }
    friend bool operator>(Small a, Small b) { return float(a) > float(b); }
    friend bool operator>=(Small a, Small b) { return float(a) >= float(b); }
};

template <class Format> struct alignas(4) Pair {
    Small<Format> x, y;

    friend Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
    friend Pair operator-(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }
    friend Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }
    friend Pair operator/(Pair a, Pair b) { return {a.x / b.x, a.y / b.y}; }
    friend Pair operator-(Pair a) { return {-a.x, -a.y}; }
    Pair &operator+=(Pair b) { return *this = *this + b; }
    Pair &operator-=(Pair b) { return *this = *this - b; }
    Pair &operator*=(Pair b) { return *this = *this * b; }
};

struct Half {
    static uint16_t round(float x) { return __builtin_bit_cast(uint16_t, _Float16(x)); }
    static float widen(uint16_t bits) { return __builtin_bit_cast(_Float16, bits); }
};

struct Brain {
    static uint16_t round(float x) {
        uint32_t bits = __builtin_bit_cast(uint32_t, x);
        if (x != x)
            return 0x7fff;
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static float widen(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
};

} // namespace cuda_on_cpu

#define CUDA_ON_CPU_SMALL(name, expression)                                                            \
    template <class F> cuda_on_cpu::Small<F> h##name(cuda_on_cpu::Small<F> small) {                    \
        float x = small;                                                                               \
        return expression;                                                                             \
    }                                                                                                  \
    template <class F> cuda_on_cpu::Pair<F> h2##name(cuda_on_cpu::Pair<F> pair) {                      \
        return {h##name(pair.x), h##name(pair.y)};                                                     \
    }
CUDA_ON_CPU_SMALL(exp, expf(x))
CUDA_ON_CPU_SMALL(log, logf(x))
CUDA_ON_CPU_SMALL(sin, sinf(x))
CUDA_ON_CPU_SMALL(cos, cosf(x))
CUDA_ON_CPU_SMALL(sqrt, sqrtf(x))
CUDA_ON_CPU_SMALL(rsqrt, 1 / sqrtf(x))
CUDA_ON_CPU_SMALL(ceil, ceilf(x))
CUDA_ON_CPU_SMALL(floor, floorf(x))
CUDA_ON_CPU_SMALL(trunc, truncf(x))
CUDA_ON_CPU_SMALL(rint, rintf(x))

template <class F> cuda_on_cpu::Small<F> __hmax(cuda_on_cpu::Small<F> a, cuda_on_cpu::Small<F> b) { return fmaxf(a, b); }
template <class F> cuda_on_cpu::Small<F> __hmin(cuda_on_cpu::Small<F> a, cuda_on_cpu::Small<F> b) { return fminf(a, b); }
template <class F> cuda_on_cpu::Pair<F> __hmax2(cuda_on_cpu::Pair<F> a, cuda_on_cpu::Pair<F> b) {
    return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}
template <class F> cuda_on_cpu::Pair<F> __hmin2(cuda_on_cpu::Pair<F> a, cuda_on_cpu::Pair<F> b) {
    return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
}
template <class F> bool __hisnan(cuda_on_cpu::Small<F> a) { return isnan(float(a)); }
template <class F> int __hisinf(cuda_on_cpu::Small<F> a) { return isinf(float(a)); }
