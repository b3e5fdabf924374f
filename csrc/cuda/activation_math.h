// What csrc/activations.h needs on a device.
#pragma once

#include "activations.h"
#include "cuda/numbers.h"
#include "hardware/sm80.h"

namespace icl {

struct DeviceMath {
  __device__ __forceinline__ float exp(float x) const { return exp2_approx(x * kLog2E); }
  __device__ __forceinline__ float expm1(float x) const { return expm1f(x); }
  __device__ __forceinline__ bool any(bool condition) const { return condition; }
};

}  // namespace icl
