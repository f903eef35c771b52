#pragma once

#include "small_floats.h"

typedef cuda_on_cpu::Small<cuda_on_cpu::Brain> __nv_bfloat16;
typedef cuda_on_cpu::Pair<cuda_on_cpu::Brain> __nv_bfloat162;
