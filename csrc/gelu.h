// gelu(u) - gelu(u - du), with rounding errors relative to du and not to u, for one float (csrc/cuda) and for a vector
// of them (csrc/cpu). `Math` brings what the two do differently: exp(x) and expm1(x) for x <= 0, any(condition).
//
// A GELU is t * S(t) with a sigmoid S, S(-t) = 1 - S(t); so gelu(t) = max(t, 0) - |t| S(-|t|), whose second part is at
// most 0.17. That is what makes the tails harmless: there S(-|t|) is 0 and nothing else is rounded at the size of t.
#pragma once

#ifdef __CUDACC__
#define ICL_EVERYWHERE __device__ __forceinline__
#else
#define ICL_EVERYWHERE inline __attribute__((always_inline))
#endif

namespace icl {

// Beyond it S(-t) is below 1e-43 and counts as 0.
constexpr float kGeluTail = 14.0f;

template <typename F>
ICL_EVERYWHERE F magnitude(F x) {
  return x < 0.0f ? -x : x;
}

// x, or the nearest to it of +-limit; NaN stays.
template <typename F>
ICL_EVERYWHERE F clamped(F x, float limit) {
  const F most = F{} + limit;
  x = x > most ? most : x;
  return x < -most ? -most : x;
}

template <typename F>
struct Normal {
  F density;  // exp(-a^2 / 2) / sqrt(2 pi)
  F beyond;   // Phi(-a)
};

// a in [0, kGeluTail]. Phi(-a) = exp(-a^2 / 2) t P(t) with t = 4 / (4 + a), P of least relative error: 8e-9, and 2e-8
// with the coefficients rounded to float32. They add up to 0.5 and none exceeds 0.1: nothing cancels.
template <typename F, typename Math>
ICL_EVERYWHERE Normal<F> normal(F a, Math math) {
  const F e = math.exp(a * a * -0.5f), t = 4.0f / (a + 4.0f);
  F p = t * 0.0166127719f - 0.0629772469f;
  p = p * t + 0.0521014594f;
  p = p * t + 0.0278157871f;
  p = p * t + 0.0132476734f;
  p = p * t + 0.086356841f;
  p = p * t + 0.0721081123f;
  p = p * t + 0.0954912007f;
  p = p * t + 0.0994956791f;
  p = p * t + 0.0997477323f;
  return {e * 0.398942280f, e * (p * t)};
}

// The mean of gelu' from u - du to u is its Taylor series about the middle m: with h = du / 2,
//     Phi(m) + phi(m) (m + sum_k h^2k / (2k+1)! (He_{2k+1}(m) - He_{2k-1}(m))),    He: Hermite polynomials.
// Three terms: for |du| <= 1/2 the fourth is below 6e-9, a tenth of float32's rounding. Further apart the two GELUs are
// subtracted: du is large enough there for their rounding, beside max(t, 0), to be a few units of du's.
template <typename F, typename Math>
ICL_EVERYWHERE F exact_gelu_difference(F u, F du, Math math) {
  const F m = clamped(u - du * 0.5f, kGeluTail);
  const Normal<F> at_m = normal(magnitude(m), math);
  const F q = m * m, h2 = du * du * 0.25f;
  const F seventh = ((q - 22.0f) * q + 115.0f) * q - 120.0f, fifth = (q - 11.0f) * q + 18.0f, third = q - 4.0f;
  const F series = ((seventh * h2 * (1 / 42.0f) + fifth) * h2 * (1 / 20.0f) + third) * h2 * (1 / 6.0f) + 1.0f;
  const F near = du * ((m < 0.0f ? at_m.beyond : 1.0f - at_m.beyond) + at_m.density * m * series);
  const auto far_apart = magnitude(du) > 0.5f;
  if (!math.any(far_apart)) return near;

  const F left = u - du, zero = F{};
  const F a = clamped(magnitude(u), kGeluTail), b = clamped(magnitude(left), kGeluTail);
  // both positive: du itself, which u - left would be but for the rounding of `left`
  const F linear = u > 0.0f ? (left > 0.0f ? du : u) : (left > 0.0f ? -left : zero);
  const F far = linear - (a * normal(a, math).beyond - b * normal(b, math).beyond);
  return far_apart ? far : near;
}

// S(t) = sigmoid(2 sqrt(2 / pi) (t + 0.044715 t^3)); S(u) - S(left) is a product of two sigmoids and expm1 of the
// difference of their arguments, in which du is a factor: nothing cancels, whatever du.
template <typename F, typename Math>
ICL_EVERYWHERE F tanh_gelu_difference(F u, F du, Math math) {
  constexpr float kScale = 1.59576912f, kCube = 0.044715f;
  const F one = F{} + 1.0f;
  const F x = clamped(u, kGeluTail), y = clamped(u - du, kGeluTail);
  const F at_u = x * (x * x * kCube + 1.0f) * kScale, at_left = y * (y * y * kCube + 1.0f) * kScale;
  const F apart = du * ((x * (x + y) + y * y) * kCube + 1.0f) * kScale;
  const F e = math.exp(-magnitude(at_u)), f = math.exp(-magnitude(at_left));
  const F likely = 1.0f / (e + 1.0f), likely_left = 1.0f / (f + 1.0f);  // sigmoids of magnitudes
  const F s_left = likely_left * (at_left < 0.0f ? f : one);
  // sigmoid(larger) sigmoid(-smaller) (1 - exp(smaller - larger)) = sigmoid(larger) - sigmoid(smaller)
  const auto rises = apart > 0.0f;
  const F of_u = (rises ? at_u : -at_u) < 0.0f ? e : one, of_left = (rises ? -at_left : at_left) < 0.0f ? f : one;
  const F grown = likely * of_u * likely_left * of_left * math.expm1(-magnitude(apart));
  return du * s_left + u * (rises ? -grown : grown);
}

// An element that is not finite gives NaN, as inf - inf would, and not what the limits happen to be.
template <bool kTanh, typename F, typename Math>
ICL_EVERYWHERE F gelu_difference(F u, F du, Math math) {
  const F nothing = (u - u) + (du - du);
  if constexpr (kTanh) {
    return tanh_gelu_difference(u, du, math) + nothing;
  } else {
    return exact_gelu_difference(u, du, math) + nothing;
  }
}

}  // namespace icl
