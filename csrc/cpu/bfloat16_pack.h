// The operands of a tile kernel of bfloat16 (bfloat16_tile.h), from matrices of float32, which are rounded, and of
// bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/bfloat16_tile.h"
#include "cpu/integers.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace icl::ICL_ISA {

ICL_INLINE int64_t padded_depth(int64_t depth) { return round_up(depth, kDepthStep); }

ICL_INLINE uint16_t narrowed(float x) { return narrow(x); }
ICL_INLINE uint16_t narrowed(uint16_t x) { return x; }

// W elements, each in the lower half of a lane
ICL_INLINE vu load_narrowed(const float* p) { return narrow(load(p)); }
ICL_INLINE vu load_narrowed(const uint16_t* p) {
  half_vu16 h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vu);
}

// W pairs of consecutive elements, each pair in one lane
ICL_INLINE vf load_pairs(const uint16_t* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

ICL_INLINE vf load_pairs(const float* p) {
  uint16_t pairs[2 * W];
  store(pairs, load(p));
  store(pairs + W, load(p + W));
  return load_pairs(pairs);
}

// Rows as a panel of b: out[k / 2][j][k % 2] = rows[j][k], 0 for j >= count and beyond width
template <typename T>
void pack_pairs(const T* rows /* [count, width], `step` apart */, int64_t step, int64_t count, int64_t width,
                uint16_t* out /* [padded_depth(width) / 2][kPanelColumns][2] */) {
  for (int64_t first = 0; first < kPanelColumns; first += W) {
    const int64_t here = clamp(count - first, 0, W);
    const T* from = rows + first * step;
    uint16_t* to = out + 2 * first;
    int64_t k = 0;
    for (; k + 2 * W <= width; k += 2 * W)
      transpose_block([&](int j) { return j < here ? load_pairs(from + j * step + k) : vf{}; },
                      reinterpret_cast<float*>(to + k * kPanelColumns), kPanelColumns);
    for (; k < padded_depth(width); ++k)
      for (int j = 0; j < W; ++j)
        to[(k / 2) * 2 * kPanelColumns + 2 * j + k % 2] = j < here && k < width ? narrowed(from[j * step + k]) : 0;
  }
}

// Rows as rows of panels of b: out[k / 2][j][k % 2] = rows[k][j], 0 for j >= count and beyond depth
template <typename T>
void pack_rows(const T* rows /* [depth, count], `step` apart */, int64_t step, int64_t depth, int64_t count,
               uint16_t* out /* [padded_depth(depth) / 2][kPanelColumns][2] */) {
  int64_t k = 0;
  if (count == kPanelColumns)
    for (; k + 2 <= depth; k += 2, rows += 2 * step, out += 2 * kPanelColumns)
#pragma GCC unroll 8
      for (int64_t j = 0; j < kPanelColumns; j += W) {
        const vu pairs = load_narrowed(rows + j) | load_narrowed(rows + step + j) << 16;
        std::memcpy(out + 2 * j, &pairs, sizeof pairs);
      }
  for (; k < padded_depth(depth); k += 2, rows += 2 * step, out += 2 * kPanelColumns)
    for (int64_t j = 0; j < kPanelColumns; ++j)
      for (int64_t odd = 0; odd < 2; ++odd)
        out[2 * j + odd] = j < count && k + odd < depth ? narrowed(rows[odd * step + j]) : 0;
}

// A row as a row of a: rounded, and padded with zeros
template <typename T>
void narrow_row(const T* row /* [width] */, int64_t width, uint16_t* out /* [padded_depth(width)] */) {
  int64_t k = 0;
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    std::memcpy(out, row, size_t(width) * sizeof(T));
    k = width;
  } else {
    for (; k + W <= width; k += W) store(out + k, load(row + k));
    for (; k < width; ++k) out[k] = narrow(row[k]);
  }
  for (; k < padded_depth(width); ++k) out[k] = 0;
}

}  // namespace icl::ICL_ISA
