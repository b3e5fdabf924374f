// Vectors of floats as wide as the instruction set this file is compiled for, and the few functions kernels need.
//
// Every kernel source is compiled once per instruction set (csrc/CMakeLists.txt defines ICL_ISA as baseline, avx2 or
// avx512) and chosen at run time (isa.h). Everything here lives in namespace icl::ICL_ISA and is inlined, so that no
// two of these compilations share a symbol: the linker would keep one, and an old machine would meet AVX-512 in it.
// For the same reason kernels use no std:: algorithm or container.
#pragma once

#include <cstdint>
#include <cstring>

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

// a > b ? a : b lane by lane; a NaN in b is dropped, one in a kept by no one: callers look for NaN themselves
ICL_INLINE vf max(vf a, vf b) { return a > b ? a : b; }

ICL_INLINE float sum(vf v) {
  float s = 0;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
}

ICL_INLINE float largest(vf v) {
  float m = v[0];
  for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// exp(x), error below 2 ulp (float64 libm) for x in [-87, 88]; below that 0, above it infinity, NaN for NaN.
ICL_INLINE vf exp(vf x) {
  const vf low = splat(-87.33654f), high = splat(88.72283f);
  vf clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the integer in the low bits of the mantissa
  const vf shift = splat(12582912.0f);
  vf shifted = clamped * splat(1.44269504f) + shift;
  vf n = shifted - shift;
  vf r = clamped - n * splat(0.693359375f);  // ln 2 in two parts: the first product is exact
  r = r + n * splat(2.12194440e-4f);
  vf p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  // 2^n in two factors, because n can be 128
  vi k = (vi)shifted - (vi)shift;
  vi half = k >> 1;
  vf scaled = p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
  scaled = x < low ? vf{} : scaled;
  scaled = x > high ? splat(__builtin_inff()) : scaled;
  return x == x ? scaled : x;
}

}  // namespace icl::ICL_ISA
