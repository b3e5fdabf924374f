// How much an activation changes when du is taken from its input u, a(u) - a(u - du), with rounding errors relative to
// du and not to u; for one float (csrc/cuda) and for a vector of them (csrc/cpu). `Math` brings what the two do
// differently: exp(x) and expm1(x) for x <= 0, any(condition).
//
// An activation is a struct with At<F>, what all changes of one u share: at(u), value() = a(u), change(du).
#pragma once

#include "ops.h"

#ifdef __CUDACC__
#define ICL_EVERYWHERE __device__ __forceinline__
#else
#define ICL_EVERYWHERE inline __attribute__((always_inline))
#endif

namespace icl {

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

// max(u, 0) - max(left, 0), left = u - du: of two positive ones du, which u - left is but for the rounding of left
template <typename F>
ICL_EVERYWHERE F change_of_positive(F u, F left, F du) {
  const F zero = F{};
  return u > 0.0f ? (left > 0.0f ? du : u) : (left > 0.0f ? -left : zero);
}

struct Relu {
  template <typename F>
  struct At {
    F u;

    template <typename Math>
    static ICL_EVERYWHERE At at(F u, Math) {
      return {u};
    }

    ICL_EVERYWHERE F value() const { return u > 0.0f ? u : F{}; }

    template <typename Math>
    ICL_EVERYWHERE F change(F du, Math) const {
      return change_of_positive(u, u - du, du);
    }
  };
};

template <typename F>
struct Sigmoid {
  F of, complement;  // S(x), 1 - S(x)

  template <typename Math>
  static ICL_EVERYWHERE Sigmoid at(F x, Math math) {
    const F e = math.exp(-magnitude(x)), larger = 1.0f / (e + 1.0f), smaller = e * larger;
    return {x < 0.0f ? smaller : larger, x < 0.0f ? larger : smaller};
  }
};

// t S(f(t)) of a sigmoid S. With du = u - left its change is du S(f(left)) + u (S(f(u)) - S(f(left))), where
//     S(x) - S(y) = S(larger) S(-smaller) (1 - exp(-|x - y|)),
// and `apart` = f(u) - f(left) has du as a factor: nothing cancels, whatever du.
template <typename F, typename Math>
ICL_EVERYWHERE F change_of_sigmoid(F u, F du, Sigmoid<F> at_u, Sigmoid<F> at_left, F apart, Math math) {
  const auto rises = apart > 0.0f;
  const F ends = (rises ? at_u.of : at_left.of) * (rises ? at_left.complement : at_u.complement);
  const F fallen = ends * math.expm1(-magnitude(apart));
  return du * at_left.of + u * (rises ? -fallen : fallen);
}

// t S(t)
struct Silu {
  template <typename F>
  struct At {
    F u;
    Sigmoid<F> sigmoid;

    template <typename Math>
    static ICL_EVERYWHERE At at(F u, Math math) {
      return {u, Sigmoid<F>::at(u, math)};
    }

    ICL_EVERYWHERE F value() const { return u * sigmoid.of; }

    template <typename Math>
    ICL_EVERYWHERE F change(F du, Math math) const {
      return change_of_sigmoid(u, du, sigmoid, Sigmoid<F>::at(u - du, math), du, math);
    }
  };
};

// Beyond it both GELUs are t or 0: what is left of the smaller side is below 1e-43 and counts as 0.
constexpr float kGeluTail = 14.0f;

// t S(f(t)), f(t) = 2 sqrt(2 / pi) (t + 0.044715 t^3)
struct GeluTanh {
  static constexpr float kScale = 1.59576912f, kCube = 0.044715f;

  template <typename F>
  struct At {
    F u, clamped_u;
    Sigmoid<F> sigmoid;

    template <typename Math>
    static ICL_EVERYWHERE At at(F u, Math math) {
      const F x = clamped(u, kGeluTail);
      return {u, x, Sigmoid<F>::at(argument(x), math)};
    }

    ICL_EVERYWHERE F value() const { return u * sigmoid.of; }

    template <typename Math>
    ICL_EVERYWHERE F change(F du, Math math) const {
      const F x = clamped_u, y = clamped(u - du, kGeluTail);
      const F apart = du * ((x * (x + y) + y * y) * kCube + 1.0f) * kScale;
      return change_of_sigmoid(u, du, sigmoid, Sigmoid<F>::at(argument(y), math), apart, math);
    }

   private:
    static ICL_EVERYWHERE F argument(F t) { return t * (t * t * kCube + 1.0f) * kScale; }
  };
};

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

// t Phi(t) = max(t, 0) - |t| Phi(-|t|), whose second part, `tail`, is at most 0.17. That makes large t harmless: there
// it is 0 and nothing else is rounded at the size of t.
//
// The mean of gelu' from u - du to u is its Taylor series about the middle m: with h = du / 2,
//     Phi(m) + phi(m) (m + sum_k h^2k / (2k+1)! (He_{2k+1}(m) - He_{2k-1}(m))),    He: Hermite polynomials.
// Three terms: for |du| <= 1/2 the fourth is below 6e-9, a tenth of float32's rounding. Further apart the two GELUs are
// subtracted: du is large enough there for their rounding, beside max(t, 0), to be a few units of du's.
struct Gelu {
  template <typename F>
  struct At {
    F u, tail;

    template <typename Math>
    static ICL_EVERYWHERE At at(F u, Math math) {
      return {u, tail_of(u, math)};
    }

    ICL_EVERYWHERE F value() const { return (u > 0.0f ? u : F{}) - tail; }

    template <typename Math>
    ICL_EVERYWHERE F change(F du, Math math) const {
      const F m = clamped(u - du * 0.5f, kGeluTail);
      const Normal<F> at_m = normal(magnitude(m), math);
      const F q = m * m, h2 = du * du * 0.25f;
      const F seventh = ((q - 22.0f) * q + 115.0f) * q - 120.0f, fifth = (q - 11.0f) * q + 18.0f, third = q - 4.0f;
      const F series = ((seventh * h2 * (1 / 42.0f) + fifth) * h2 * (1 / 20.0f) + third) * h2 * (1 / 6.0f) + 1.0f;
      const F near = du * ((m < 0.0f ? at_m.beyond : 1.0f - at_m.beyond) + at_m.density * m * series);
      const auto far_apart = magnitude(du) > 0.5f;
      if (!math.any(far_apart)) return near;

      const F left = u - du, far = change_of_positive(u, left, du) - (tail - tail_of(left, math));
      return far_apart ? far : near;
    }

   private:
    template <typename Math>
    static ICL_EVERYWHERE F tail_of(F t, Math math) {
      const F a = clamped(magnitude(t), kGeluTail);
      return a * normal(a, math).beyond;
    }
  };
};

// f(Kind{}) for the activation of that number.
template <typename Function>
inline __attribute__((always_inline)) auto with_activation(int activation, Function f) {
  switch (Activation(activation)) {
    case Activation::kGelu: return f(Gelu{});
    case Activation::kGeluTanh: return f(GeluTanh{});
    case Activation::kSilu: return f(Silu{});
    case Activation::kRelu: break;
  }
  return f(Relu{});
}

// a(u) - a(u - du). What is not finite gives NaN, as inf - inf would, and not what the limits happen to be.
template <typename At, typename F, typename Math>
ICL_EVERYWHERE F activation_difference(const At& at, F du, Math math) {
  return at.change(du, math) + ((at.u - at.u) + (du - du));
}

// a(g) u - a(g - dg) (u - du) = da u + (a(g) - da) du, da = a(g) - a(g - dg)
template <typename At, typename F, typename Math>
ICL_EVERYWHERE F gated_difference(const At& gate, F up, F gate_removed, F up_removed, Math math) {
  const F change = activation_difference(gate, gate_removed, math);
  return change * up + (gate.value() - change) * up_removed;
}

}  // namespace icl
