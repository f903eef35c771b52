#pragma once

#include "small_floats.h"

typedef cuda_on_cpu::Small<cuda_on_cpu::Half> __half;
typedef cuda_on_cpu::Pair<cuda_on_cpu::Half> __half2;
