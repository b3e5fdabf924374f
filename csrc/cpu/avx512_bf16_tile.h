// The tile kernel of vdpbf16ps. Included where that is an instruction, and where it is emulated.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/bfloat16_tile.h"

namespace icl::ICL_TILE {
namespace avx512_bf16_kernel {

// 24 sums in registers, two vectors of b; a pair of `a` is broadcast by the load
constexpr int kRows = 12;

template <int R>
inline __attribute__((always_inline)) void multiply_rows(const uint16_t* a, int64_t a_step, const uint16_t* panel,
                                                         int64_t depth, float* out, int64_t out_step, bool add) {
  __m512 sums[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    // stores that miss would wait for each other
    __builtin_prefetch(out + r * out_step, 1);
    __builtin_prefetch(out + r * out_step + 16, 1);
  }
  for (int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelColumns) {
    const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + kPanelColumns);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, a + r * a_step + k, sizeof pair);
      const __m512i x = _mm512_set1_epi32(pair);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], (__m512bh)x, (__m512bh)left);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], (__m512bh)x, (__m512bh)right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* to = out + r * out_step;
    _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sums[r][0]) : sums[r][0]);
    _mm512_storeu_ps(to + 16, add ? _mm512_add_ps(_mm512_loadu_ps(to + 16), sums[r][1]) : sums[r][1]);
  }
}

template <int R = kRows - 1>
inline void multiply_rest(int64_t rows, const uint16_t* a, int64_t a_step, const uint16_t* panel, int64_t depth,
                          float* out, int64_t out_step, bool add) {
  if (rows == R) {
    multiply_rows<R>(a, a_step, panel, depth, out, out_step, add);
  } else if constexpr (R > 1) {
    multiply_rest<R - 1>(rows, a, a_step, panel, depth, out, out_step, add);
  }
}

inline void multiply(const uint16_t* a, int64_t a_step, int64_t rows, const uint16_t* panels, int64_t count,
                     int64_t depth, float* out, int64_t out_step, bool add) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t* panel = panels + i * depth * kPanelColumns;
    float* to = out + i * kPanelColumns;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows)
      multiply_rows<kRows>(a + row * a_step, a_step, panel, depth, to + row * out_step, out_step, add);
    multiply_rest(rows - row, a + row * a_step, a_step, panel, depth, to + row * out_step, out_step, add);
  }
}

}  // namespace avx512_bf16_kernel
}  // namespace icl::ICL_TILE
