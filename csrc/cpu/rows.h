// Rows of float32 or bfloat16 in memory as rows of floats and back, exp of what is not positive, how many threads.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/simd.h"

namespace icl::ICL_ISA {

// Threads for `units` of work with that many multiply-adds in all. Waking one costs more than a small call takes.
ICL_INLINE int64_t useful_threads(int64_t threads, int64_t units, int64_t work) {
  constexpr int64_t worth_a_thread = 1 << 18;
  if (threads > units) threads = units;
  if (threads > work / worth_a_thread) threads = work / worth_a_thread;
  return threads < 1 ? 1 : threads;
}

ICL_INLINE int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// the larger; x where either is NaN. One instruction, which g++ does not find by itself in every place
ICL_INLINE vf at_least(vf low, vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_max_ps(__mmask16(-1), (__m512)low, (__m512)x);  // the plain one warns in g++ 12
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)low, (__m256)x);
#elif defined(__x86_64__)
  return (vf)_mm_max_ps((__m128)low, (__m128)x);
#else
  return low > x ? low : x;
#endif
}

// exp(x) for x <= 0 or NaN; 0 where it would not be a normal number. Cheaper than exp() in simd.h: x / ln 2 is rounded,
// which costs a relative |x| * 2^-24. The larger that is, the less the weight counts beside the largest, which is 1.
ICL_INLINE vf exp_nonpositive(vf x) {
  const vf low = splat(-127.0f), shift = splat(12582912.0f);
  vf t = x * splat(1.44269504f);
  t = at_least(low, t);
  vf shifted = t + shift;  // its low bits are n = round(t); those of `shift` are 0
  vf r = t - (shifted - shift);
  vf p = splat(1.5453163360e-04f);  // 2^r for |r| <= 1/2, error 1e-8; exactly 1 at 0
  p = p * r + splat(1.3390863314e-03f);
  p = p * r + splat(9.6180830151e-03f);
  p = p * r + splat(5.5503569543e-02f);
  p = p * r + splat(2.4022650719e-01f);
  p = p * r + splat(6.9314718246e-01f);
  p = p * r + splat(1.0f);
  // 2^n, which is 0 for n = -127; a product, not a sum of bits, so that a NaN stays one
  return p * (vf)(((vu)shifted << 23) + 0x3f800000u);
}

ICL_INLINE void store_narrow(float* p, vf v) { store(p, v); }

ICL_INLINE void store_narrow(uint16_t* p, vf v) {
  vu bits = (vu)v;
  vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = v == v ? rounded : vu{} + 0x7fc0u;
  half_vu16 h = __builtin_convertvector(rounded, half_vu16);
  std::memcpy(p, &h, sizeof h);
}

template <typename T>
ICL_INLINE void narrow_row(const float* from, T* to, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store_narrow(to + i, load(from + i));
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
