// The inner loop of every matrix product here: a block of the result in registers, a broadcast, b by rows.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace icl::ICL_ISA {

// Products longer than this are summed in pieces: errors grow with the length of a piece more than with their number.
// At 512 they are about 1.5 times torch's, at 128 about the same, for 1% of the speed.
constexpr int64_t kPiece = 128;

// c += a [R, depth] @ b [depth, V * W]; a's rows and columns are row_step and k_step apart, b's rows b_step
template <int R, int V>
ICL_INLINE void multiply_add(const float* a, int64_t row_step, int64_t k_step, const float* b, int64_t b_step,
                             int64_t depth, vf (&c)[R][V]) {
  // a local copy: the compiler keeps it in registers through the loop
  vf sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[r][v] = c[r][v];
  for (int64_t k = 0; k < depth; ++k) {
    vf x[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) x[v] = load(b + k * b_step + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vf y = splat(a[r * row_step + k * k_step]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums[r][v] = fused(y, x[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) c[r][v] = sums[r][v];
}

}  // namespace icl::ICL_ISA
