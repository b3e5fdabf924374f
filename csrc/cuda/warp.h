// What the lanes of a warp exchange.
#pragma once

#include <cstdint>

#include "cuda/numbers.h"

namespace icl {

constexpr unsigned kFullWarp = 0xffffffffu;

// Of four neighbouring lanes with four words each, lane i gets word i of all: a 4 x 4 matrix, transposed.
__device__ __forceinline__ void transpose(uint32_t (&words)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & bit) continue;
      const uint32_t got = __shfl_xor_sync(kFullWarp, upper ? words[j] : words[j | bit], bit);
      words[j] = upper ? got : words[j];
      words[j | bit] = upper ? words[j | bit] : got;
    }
  }
}

// The sum over kLanes neighbouring lanes, in each of them.
template <int kLanes = 32>
__device__ __forceinline__ float sum_lanes(float own) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) own += __shfl_xor_sync(kFullWarp, own, mask);
  return own;
}

}  // namespace icl
