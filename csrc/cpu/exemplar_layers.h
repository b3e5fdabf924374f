// Norms, rotations and attention of exemplar_steps, forward and backward, on lanes: x[c][t][lane].
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

constexpr int64_t kLanes = 16;      // examples of a slice, for every instruction set: sums are cut the same way
constexpr int64_t kMaxTokens = 33;  // 16 pairs and the query

static_assert(kLanes % W == 0);

// sum over i < count of term(i), in four sums
template <typename Term>
ICL_INLINE vf sum_over(int64_t count, Term term) {
  vf sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] += term(i + j);
  for (; i < count; ++i) sums[0] += term(i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

struct Norm {
  const float *gain, *bias;  // [C]
  float eps;
};

// x [C][columns] -> its normed values, before (xhat) and after gain and bias; xhat may be x
static void norm_lanes(const Norm& norm, int64_t width, int64_t columns, const float* x, float* xhat, float* out,
                       float* inverse /* [columns] */) {
  const vf share = splat(1.0f / float(width));
  for (int64_t j = 0; j < columns; j += W) {
    const vf mean = sum_over(width, [&](int64_t c) { return load(x + c * columns + j); }) * share;
    const vf variance = sum_over(width, [&](int64_t c) {
      const vf d = load(x + c * columns + j) - mean;
      return d * d;
    }) * share;
    const vf scale = splat(1.0f) / sqrt(variance + splat(norm.eps));
    store(inverse + j, scale);
    for (int64_t c = 0; c < width; ++c) {
      const vf normed = (load(x + c * columns + j) - mean) * scale;
      store(xhat + c * columns + j, normed);
      store(out + c * columns + j, normed * splat(norm.gain[c]) + splat(norm.bias[c]));
    }
  }
}

// Gradient of x from that of the output, and the sums that are the gradients of gain and bias. dx may be dout.
static void norm_lanes_back(const Norm& norm, int64_t width, int64_t columns, const float* dout, const float* xhat,
                            const float* inverse, float* dx, float* dgain, float* dbias) {
  for (int64_t c = 0; c < width; ++c) {
    vf gain{}, bias{};
    for (int64_t j = 0; j < columns; j += W) {
      const vf d = load(dout + c * columns + j);
      gain += d * load(xhat + c * columns + j);
      bias += d;
    }
    dgain[c] = sum_of_lanes(gain);
    dbias[c] = sum_of_lanes(bias);
  }
  const vf share = splat(1.0f / float(width));
  for (int64_t j = 0; j < columns; j += W) {
    const auto d = [&](int64_t c) { return load(dout + c * columns + j) * splat(norm.gain[c]); };
    const vf mean = sum_over(width, d) * share;
    const vf along = sum_over(width, [&](int64_t c) { return d(c) * load(xhat + c * columns + j); }) * share;
    const vf scale = load(inverse + j);
    for (int64_t c = 0; c < width; ++c)
      store(dx + c * columns + j, (d(c) - mean - load(xhat + c * columns + j) * along) * scale);
  }
}

struct Rotation {
  const float *cos, *sin;  // [T, D/2], or null
};

// The columns of position t, rotated as those of `angle`; by the opposite angle for gradients
static void rotate(const Rotation& by, int64_t angle, float sign, int64_t heads, int64_t depth, int64_t step,
                   float* x /* [C][step], at the position's first lane */) {
  if (!by.cos) return;
  const int64_t planes = depth / 2;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < planes; ++i) {
      const vf cos = splat(by.cos[angle * planes + i]), sin = splat(sign * by.sin[angle * planes + i]);
      float *first = x + (h * depth + 2 * i) * step, *second = first + step;
      for (int64_t lane = 0; lane < kLanes; lane += W) {
        const vf a = load(first + lane), b = load(second + lane);
        store(first + lane, a * cos - b * sin);
        store(second + lane, b * cos + a * sin);
      }
    }
}

// One head: rows [D][step] of q, k, v and z, each at its first lane; a position is kLanes further
struct Head {
  int64_t depth, step;
  float factor;  // of the products of q and k
  float write;   // of what the head writes
  const float *q, *k, *v;
};

struct HeadGradients {
  float *dq, *dk, *dv;
};

// Scores of one query with the keys before `keys`. q_step: between the rows of q.
ICL_INLINE void head_scores(const Head& head, const float* q, int64_t q_step, int64_t keys, int64_t lane, vf* scores) {
  for (int64_t t = 0; t < keys; ++t) {
    vf score{};
    for (int64_t d = 0; d < head.depth; ++d)
      score += load(q + d * q_step + lane) * load(head.k + d * head.step + t * kLanes + lane);
    scores[t] = score * splat(head.factor);
  }
}

// Scores to weights; `without`: a key that is not attended to, or -1
ICL_INLINE void softmax(vf* scores, int64_t keys, int64_t without) {
  vf top = splat(-INFINITY);
  for (int64_t t = 0; t < keys; ++t)
    if (t != without) top = max(scores[t], top);
  vf total{};
  for (int64_t t = 0; t < keys; ++t) {
    scores[t] = t == without ? vf{} : exp_of_difference(scores[t] - top);
    total += scores[t];
  }
  const vf share = splat(1.0f) / total;
  for (int64_t t = 0; t < keys; ++t) scores[t] *= share;
}

ICL_INLINE void mix_values(const Head& head, const vf* pattern, int64_t keys, int64_t lane, float* z, int64_t z_step) {
  for (int64_t d = 0; d < head.depth; ++d) {
    vf sum{};
    for (int64_t t = 0; t < keys; ++t) sum += pattern[t] * load(head.v + d * head.step + t * kLanes + lane);
    store(z + d * z_step + lane, sum * splat(head.write));
  }
}

ICL_INLINE void add_to(float* p, vf x) { store(p, load(p) + x); }

// From dz of one query: adds to dv; returns the gradients of its pattern
ICL_INLINE void values_back(const Head& head, const vf* pattern, int64_t keys, int64_t lane, const float* dz,
                            int64_t z_step, float* dv, vf* dpattern) {
  for (int64_t t = 0; t < keys; ++t) {
    vf sum{};
    for (int64_t d = 0; d < head.depth; ++d) {
      const vf g = load(dz + d * z_step + lane) * splat(head.write);
      sum += g * load(head.v + d * head.step + t * kLanes + lane);
      add_to(dv + d * head.step + t * kLanes + lane, pattern[t] * g);
    }
    dpattern[t] = sum;
  }
}

// Gradients of the pattern to those of the scores, in place
ICL_INLINE void softmax_back(const vf* pattern, int64_t keys, vf* gradients) {
  vf along{};
  for (int64_t t = 0; t < keys; ++t) along += pattern[t] * gradients[t];
  for (int64_t t = 0; t < keys; ++t) gradients[t] = pattern[t] * (gradients[t] - along);
}

// From the gradients of the scores of one query: writes dq, adds to dk
ICL_INLINE void scores_back(const Head& head, const float* q, int64_t q_step, int64_t keys, int64_t lane,
                            const vf* dscores, float* dq, float* dk) {
  vf scaled[kMaxTokens];
  for (int64_t t = 0; t < keys; ++t) scaled[t] = dscores[t] * splat(head.factor);
  for (int64_t d = 0; d < head.depth; ++d) {
    const vf here = load(q + d * q_step + lane);
    vf sum{};
    for (int64_t t = 0; t < keys; ++t) {
      sum += scaled[t] * load(head.k + d * head.step + t * kLanes + lane);
      add_to(dk + d * head.step + t * kLanes + lane, scaled[t] * here);
    }
    store(dq + d * q_step + lane, sum);
  }
}

// What is forced in a head of the first of two layers
struct ForcedHead {
  bool previous;     // the pattern is that of a perfect previous-token head
  bool no_previous;  // no label attends to its exemplar
};

ICL_INLINE int64_t excluded(const ForcedHead& forced, int64_t query) {
  return forced.no_previous && query % 2 == 1 ? query - 1 : -1;
}

// Every query of one head, causal. pattern [T][T][kLanes]
static void attend(const Head& head, const ForcedHead& forced, int64_t tokens, float* pattern, float* z) {
  for (int64_t lane = 0; lane < kLanes; lane += W)
    for (int64_t t = 0; t < tokens; ++t) {
      vf weights[kMaxTokens];
      if (forced.previous) {
        for (int64_t s = 0; s <= t; ++s) weights[s] = splat(s == (t ? t - 1 : 0));
      } else {
        head_scores(head, head.q + t * kLanes, head.step, t + 1, lane, weights);
        softmax(weights, t + 1, excluded(forced, t));
      }
      for (int64_t s = 0; s <= t; ++s) store(pattern + (t * tokens + s) * kLanes + lane, weights[s]);
      mix_values(head, weights, t + 1, lane, z + t * kLanes, head.step);
    }
}

// dq, dk and dv of one head are overwritten
static void attend_back(const Head& head, const ForcedHead& forced, int64_t tokens, const float* pattern,
                        const float* dz, const HeadGradients& to) {
  for (int64_t d = 0; d < head.depth; ++d)
    for (int64_t j = 0; j < tokens * kLanes; j += W) {
      if (forced.previous) store(to.dq + d * head.step + j, vf{});
      store(to.dk + d * head.step + j, vf{});
      store(to.dv + d * head.step + j, vf{});
    }
  for (int64_t lane = 0; lane < kLanes; lane += W)
    for (int64_t t = 0; t < tokens; ++t) {
      vf weights[kMaxTokens], gradients[kMaxTokens];
      for (int64_t s = 0; s <= t; ++s) weights[s] = load(pattern + (t * tokens + s) * kLanes + lane);
      values_back(head, weights, t + 1, lane, dz + t * kLanes, head.step, to.dv, gradients);
      if (forced.previous) continue;
      softmax_back(weights, t + 1, gradients);
      scores_back(head, head.q + t * kLanes, head.step, t + 1, lane, gradients, to.dq + t * kLanes, to.dk);
    }
}

}  // namespace icl::ICL_ISA
