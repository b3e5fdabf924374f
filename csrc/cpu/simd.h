// Vectors of floats as wide as the instruction set this file is compiled for: loads, stores, what crosses lanes.
//
// Every kernel source is compiled once per instruction set (csrc/CMakeLists.txt defines ICL_ISA as baseline, avx2 or
// avx512) and chosen at run time (isa.h). Everything here lives in namespace icl::ICL_ISA and is inlined, so that no
// two of these compilations share a symbol: the linker would keep one, and an old machine would meet AVX-512 in it.
// For the same reason kernels use no std:: algorithm or container.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#define ICL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ICL_VECTOR_BYTES 32
#else
#define ICL_VECTOR_BYTES 16
#endif

#define ICL_INLINE inline __attribute__((always_inline))

namespace icl::ICL_ISA {

constexpr int W = ICL_VECTOR_BYTES / 4;  // floats in a vector

using vf = float __attribute__((vector_size(ICL_VECTOR_BYTES)));
using vi = int32_t __attribute__((vector_size(ICL_VECTOR_BYTES)));
using vu = uint32_t __attribute__((vector_size(ICL_VECTOR_BYTES)));
using half_vu16 = uint16_t __attribute__((vector_size(ICL_VECTOR_BYTES / 2)));

ICL_INLINE vf splat(float x) { return x - vf{}; }

ICL_INLINE vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

ICL_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// bfloat16 is the upper half of a float32
ICL_INLINE vf load(const uint16_t* p) {
  half_vu16 h;
  std::memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}

// bfloat16, in the lower half of each lane: round to nearest even; NaN stays NaN
ICL_INLINE vu narrow(vf v) {
  const vu bits = (vu)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return v == v ? rounded : vu{} + 0x7fc0u;
}

ICL_INLINE void store(uint16_t* p, vf v) {
  half_vu16 h = __builtin_convertvector(narrow(v), half_vu16);
  std::memcpy(p, &h, sizeof h);
}

ICL_INLINE float widen(float x) { return x; }

ICL_INLINE float widen(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// round to nearest even; NaN stays NaN
ICL_INLINE uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

ICL_INLINE void narrow(float x, float* out) { *out = x; }
ICL_INLINE void narrow(float x, uint16_t* out) { *out = narrow(x); }

// a > b ? a : b lane by lane; a NaN in b is kept, one in a alone is dropped: callers look for NaN themselves. One
// instruction, which g++ does not find by itself in every place
ICL_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_max_ps(__mmask16(-1), (__m512)a, (__m512)b);  // the plain one warns in g++ 12
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// x * y + z, rounded once where there is an instruction for it. Written out, compilers decide place by place (g++ 13 does
// not fuse what it makes conditional), and sums that must agree to the bit, in one order in two places, do not.
ICL_INLINE vf fused(vf x, vf y, vf z) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#elif defined(__ARM_FEATURE_FMA)
  return (vf)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y);
#else
  return x * y + z;
#endif
}

ICL_INLINE float fused(float x, float y, float z) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(x, y, z);
#else
  return x * y + z;
#endif
}

template <int Step, int... I>
ICL_INLINE vf rotate_lanes(vf v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, ((I + Step) % W)...);
}

// The sum and the largest of the lanes, in log2(W) steps.
template <int Step = W / 2>
ICL_INLINE float sum_of_lanes(vf v) {
  v += rotate_lanes<Step>(v, std::make_integer_sequence<int, W>());
  if constexpr (Step > 1) return sum_of_lanes<Step / 2>(v);
  return v[0];
}

template <int Step = W / 2>
ICL_INLINE float largest_lane(vf v) {
  v = max(v, rotate_lanes<Step>(v, std::make_integer_sequence<int, W>()));
  if constexpr (Step > 1) return largest_lane<Step / 2>(v);
  return v[0];
}

}  // namespace icl::ICL_ISA
