// exp, expm1 and square roots of vectors.
//
// Five exponentials for five needs; a kernel keeps to one, because their last bits differ:
//     exp                 any x: infinity above the range of a float, 0 below, a normal number or 0 between
//     expm1_nonpositive   x <= 0: right relative to itself where x is small
//     exp_of_difference   x <= 0: right to 2 ulp for every term of a sum whose largest is exp(0)
//     exp_nonpositive     x <= 0: right relative to the largest term of such a sum, not to the term itself
//     exp_in_sum          the same with a shorter polynomial, for a sum of which nothing else is wanted
// The first three are 2^n e^r with n = round(x / ln 2), and share the polynomial for e^r.
#pragma once

#include "cpu/simd.h"

namespace icl::ICL_ISA {

constexpr float kLog2E = 1.44269504f;

// Added to a float below 2^22 it leaves the nearest integer in the low bits of the mantissa: 1.5 * 2^23
constexpr float kRoundingShift = 12582912.0f;

// x - n ln 2, ln 2 in two parts: the first product is exact
ICL_INLINE vf subtract_powers(vf x, vf n) {
  const vf r = x - n * splat(0.693359375f);
  return r + n * splat(2.12194440e-4f);
}

// (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2
ICL_INLINE vf exp_tail(vf r) {
  vf p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  return p * r + splat(5.0000001201e-1f);
}

// exp(x), error below 2 ulp (float64 libm) for x in [-87, 88]; below that 0, above it infinity, NaN for NaN.
ICL_INLINE vf exp(vf x) {
  const vf low = splat(-87.33654f), high = splat(88.72283f);
  vf clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  const vf shift = splat(kRoundingShift), shifted = clamped * splat(kLog2E) + shift, n = shifted - shift;
  const vf r = subtract_powers(clamped, n), p = exp_tail(r) * r * r + r + splat(1.0f);
  // 2^n in two factors, because n can be 128
  const vi k = (vi)shifted - (vi)shift, half = k >> 1;
  vf scaled = p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
  scaled = x < low ? vf{} : scaled;
  scaled = x > high ? splat(__builtin_inff()) : scaled;
  return x == x ? scaled : x;
}

// x = n ln 2 + r with n whole and |r| <= ln 2 / 2; below -87 as of -87, NaN for NaN.
struct Reduced {
  vf r;
  vf power;  // 2^n
  vf tail;   // exp_tail(r)
};

// `exact`: r is right also beside itself
template <bool exact = false>
ICL_INLINE Reduced reduce(vf x) {
  x = max(splat(-87.0f), x);
  // the low bits of `shifted` are n + 127: moved up they are the bits of the float 2^n
  const vf shift = splat(kRoundingShift + 127.0f), shifted = x * splat(kLog2E) + shift, n = shifted - shift;
#ifdef __FMA__
  // one part of ln 2 is off by 2e-9 n: nothing beside the e^n by which the result is smaller
  const vf r = exact ? subtract_powers(x, n) : x - n * splat(0.693147181f);
#else
  const vf r = subtract_powers(x, n);
#endif
  return {r, (vf)((vi)shifted << 23), exp_tail(r)};
}

// exp(x) for x <= 0 (or a rounding above), error below 2 ulp; below -87 it is exp(-87), 1.6e-38, which adds nothing to
// a sum that has a 1 in it; NaN for NaN. Half the work of exp().
ICL_INLINE vf exp_of_difference(vf x) {
  const Reduced of = reduce(x);
  return ((of.tail * of.r + splat(1.0f)) * of.r + splat(1.0f)) * of.power;
}

// e^x - 1 for x <= 0: 2^n (e^r - 1) + (2^n - 1), where n = 0 near x = 0, and elsewhere the second part is at least
// twice the first
ICL_INLINE vf expm1_nonpositive(vf x) {
  const Reduced of = reduce<true>(x);
  return (of.tail * of.r * of.r + of.r) * of.power + (of.power - splat(1.0f));
}

// exp(x) for x <= 0 or NaN; 0 where it would not be a normal number. x / ln 2 is rounded, which costs a relative
// |x| * 2^-24: the larger that is, the less the weight counts beside the largest, which is 1.
ICL_INLINE vf exp_nonpositive(vf x) {
  const vf shift = splat(kRoundingShift), t = max(splat(-127.0f), x * splat(kLog2E));
  const vf shifted = t + shift;  // its low bits are n = round(t); those of `shift` are 0
  const vf r = t - (shifted - shift);
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

// exp(x) for x <= 0 or NaN, to 3 ulp and a relative |x| 2^-24; exactly 1 at 0. Below -87 as of -87.
ICL_INLINE vf exp_in_sum(vf x) {
  x = max(splat(-87.0f), x);
  const vf shift = splat(kRoundingShift + 127.0f), shifted = x * splat(kLog2E) + shift;
  const vf r = x * splat(kLog2E) - (shifted - shift);
  vf p = splat(1.3264727313e-03f);  // 2^r for |r| <= 1/2, error 9e-8
  p = p * r + splat(9.6715129912e-03f);
  p = p * r + splat(5.5507335812e-02f);
  p = p * r + splat(2.4022242427e-01f);
  p = p * r + splat(6.9314700365e-01f);
  p = p * r + splat(1.0f);
  return p * (vf)((vi)shifted << 23);
}

ICL_INLINE vf sqrt(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps(__mmask16(-1), (__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

}  // namespace icl::ICL_ISA
