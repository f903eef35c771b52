#pragma once

#include "small_floats.h"

typedef cuda_on_cpu::Small<cuda_on_cpu::Brain> __nv_bfloat16, nv_bfloat16;
typedef cuda_on_cpu::Pair<cuda_on_cpu::Brain> __nv_bfloat162, nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
