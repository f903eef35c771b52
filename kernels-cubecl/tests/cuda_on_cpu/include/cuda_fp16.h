#pragma once

#include "small_floats.h"

typedef cuda_on_cpu::Small<cuda_on_cpu::Half> __half, half;
typedef cuda_on_cpu::Pair<cuda_on_cpu::Half> __half2, half2;

inline __half __float2half(float x) { return x; }
inline float __half2float(__half x) { return x; }
