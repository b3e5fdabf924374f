// Types of elements and conversions between them; arithmetic of sizes.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hardware/runtime.h"

namespace icl {

using bf16 = __nv_bfloat16;
using fp16 = __half;

constexpr float kLog2E = 1.44269504f, kLog2ERest = 1.92596303e-8f;    // a float, and what it leaves
constexpr float kLn2 = 0.693147182f, kLn2Rest = -1.90465432e-9f;

// Of two integers of any width, as the wider: an int with an int64_t is an int64_t
template <typename A, typename B>
__host__ __device__ constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

template <typename A, typename B>
__host__ __device__ constexpr std::common_type_t<A, B> round_up(A a, B b) {
  return ceil_div(a, b) * b;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, fp16>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Two neighbours in one 32-bit register, the first in the low half. T: bf16 or fp16.
template <typename T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&bits, &pair, 4);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&bits, &pair, 4);
  }
  return bits;
}

}  // namespace icl
