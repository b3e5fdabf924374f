// Transposes of matrices of floats, W x W at a time in registers.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/simd.h"

namespace icl::ICL_ISA {

template <int... I>
ICL_INLINE vf interleave_low(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & 1 ? W : 0) + I / 2)...);
}

template <int... I>
ICL_INLINE vf interleave_high(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & 1 ? W : 0) + (W + I) / 2)...);
}

// W x W floats in registers: log2(W) rounds of interleaving row i with row i + W/2
ICL_INLINE void transpose(vf (&rows)[W]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    vf next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + W / 2], lanes);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + W / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

// The sum of the lanes of each of W vectors
ICL_INLINE vf sums_of_lanes(const vf* rows /* [W] */) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
  vf sums[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) sums[i] = rows[i];
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i)
      sums[i] = interleave_low(sums[i], sums[i + half], lanes) + interleave_high(sums[i], sums[i + half], lanes);
  return sums[0];
}

// One block: to[c][i] = row(i)[c], to [W][to_step]. row(i) is a vector.
template <typename Row>
ICL_INLINE void transpose_block(Row row, float* to, int64_t to_step) {
  vf block[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) block[i] = row(i);
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store(to + i * to_step, block[i]);
}

// to [columns][to_step] = the transpose of from [rows][from_step]
static inline void transpose(const float* from, int64_t from_step, int64_t rows, int64_t columns, float* to,
                             int64_t to_step) {
  const int64_t whole_rows = rows / W * W, whole_columns = columns / W * W;
  for (int64_t r = 0; r < whole_rows; r += W)
    for (int64_t c = 0; c < whole_columns; c += W)
      transpose_block([&](int i) { return load(from + (r + i) * from_step + c); }, to + c * to_step + r, to_step);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_step + r] = from[r * from_step + c];
}

}  // namespace icl::ICL_ISA
