// Rows of float32 or bfloat16 in memory as rows of floats and back.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace icl::ICL_ISA {

// The first min(W, count) elements, and zeros.
template <typename T>
ICL_INLINE vf load_some(const T* from, int64_t count) {
  if (count >= W) return load(from);
  T part[W] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}

template <typename T>
ICL_INLINE void store_some(T* to, vf elements, int64_t count) {
  if (count >= W) return store(to, elements);
  T part[W];
  store(part, elements);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

template <typename T>
ICL_INLINE void narrow_row(const float* from, T* to, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  for (; i < n; ++i) narrow(from[i], to + i);
}

// from [rows, cols] -> to [rows, ld] in float32, with zeros after the last column
template <typename T>
static void widen_rows(const T* from, int64_t rows, int64_t cols, float* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, from += cols, to += ld) {
    int64_t i = 0;
    for (; i + W <= cols; i += W) store(to + i, load(from + i));
    for (; i < cols; ++i) to[i] = widen(from[i]);
    for (; i < ld; ++i) to[i] = 0;
  }
}

}  // namespace icl::ICL_ISA
