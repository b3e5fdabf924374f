// The largest of a row of logits and the sum of exp(logit - largest), block by block, and the merging of blocks.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/gemm_packed.h"
#include "cpu/rows.h"
#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

struct MaxSum {
  float max;  // -inf: nothing but -inf was seen
  float sum;  // of exp(x - max)
};

// Of a row of `count` x V x W logits. A NaN among them makes the sum NaN. The terms of the sum, where they are kept,
// are right to 2 ulp each.
template <bool keep = false, int V = NV>
ICL_INLINE MaxSum max_and_sum(const float* logits, int64_t count, float* terms = nullptr) {
  vf m[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) m[v] = load(logits + v * W);
  for (int64_t i = 1; i < count; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) m[v] = max(m[v], load(logits + (i * V + v) * W));
#pragma GCC unroll 8
  for (int v = 1; v < V; ++v) m[0] = max(m[0], m[v]);
  const float top = largest_lane(m[0]);
  const vf reference = splat(top == -INFINITY ? 0.0f : top);  // -inf - -inf would be NaN
  vf s[V] = {};
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const vf below = load(logits + (i * V + v) * W) - reference;
      if constexpr (keep) {
        const vf term = exp_of_difference(below);
        store(terms + (i * V + v) * W, term);
        s[v] += term;
      } else {
        s[v] += exp_in_sum(below);
      }
    }
#pragma GCC unroll 8
  for (int v = 1; v < V; ++v) s[0] += s[v];
  return {top, sum_of_lanes(s[0])};
}

// Both blocks as one.
inline MaxSum merge(MaxSum a, MaxSum b) {
  const float top = a.max > b.max ? a.max : b.max;
  const float reference = top == -INFINITY ? 0.0f : top;
  return {top, a.sum * expf(a.max - reference) + b.sum * expf(b.max - reference)};
}

// Columns of the weight and how they are cut: NR (or `width`) columns are a panel, panels that fit together in the
// second-level cache a group, one or more groups a strip, the task of a thread. It depends on shapes alone, and so do
// the sums.
struct Columns {
  int64_t panels;
  int64_t group;   // panels in a group, at most kGroupPanels
  int64_t strip;   // panels in a strip, whole groups
  int64_t strips;  // at most max_strips: each has partial results for every row

  // `depth`: how many rows of NR floats a panel keeps in the cache
  Columns(int64_t v, int64_t depth, int64_t max_strips, int64_t width = NR, int64_t group_floats = kGroupFloats,
          int64_t group_panels = kGroupPanels) {
    panels = ceil_div(v, width);
    group = clamp(group_floats / (width * clamp(depth, 1, INT32_MAX)), 1, group_panels);
    strip = group * ceil_div(ceil_div(panels, group), max_strips);
    strips = ceil_div(panels, strip);
  }

  static constexpr int64_t kGroupFloats = 384 * 1024 / 4;  // leaves room in 512 KiB for what streams through
  static constexpr int64_t kGroupPanels = 8;               // MR rows of logits of a group: 12 KiB
};

template <typename T>
struct Weight {
  const T* weight;  // [V, C]
  const T* bias;    // [V] or null
  int64_t c, v;

  // A panel, and what is added to its logits. -inf in columns beyond V: they count for nothing.
  void pack(int64_t panel, float* out /* [C][NR] */, float* offsets /* [NR] */) const {
    const int64_t column = panel * NR, here = min(v - column, NR);
    pack_panel(weight + column * c, c, here, c, out);
    for (int64_t j = 0; j < NR; ++j) offsets[j] = j >= here ? -INFINITY : bias ? widen(bias[column + j]) : 0.0f;
  }
};

// What each strip has found out about each row.
struct Partial {
  float* max;    // [strips][rows]
  float* sum;    // [strips][rows]
  int64_t rows;  // a multiple of W

  void add(int64_t strip, int64_t row, MaxSum found, bool first) const {
    float *m = max + strip * rows + row, *s = sum + strip * rows + row;
    if (!first) found = icl::ICL_ISA::merge({*m, *s}, found);
    *m = found.max;
    *s = found.sum;
  }

  // The same for `count` rows, W at a time
  void add(int64_t strip, int64_t row, int64_t count, const float* found_max, const float* found_sum,
           bool first) const {
    for (int64_t i = 0; i < count; i += W) {
      const int64_t here = count - i;
      float *m = max + strip * rows + row + i, *s = sum + strip * rows + row + i;
      vf peak = load_some(found_max + i, here), total = load_some(found_sum + i, here);
      if (!first) {
        const vf old = load_some(m, here), top = icl::ICL_ISA::max(old, peak);
        const vf reference = top == splat(-INFINITY) ? vf{} : top;
        total = load_some(s, here) * exp(old - reference) + total * exp(peak - reference);
        peak = top;
      }
      store_some(m, peak, here);
      store_some(s, total, here);
    }
  }

  // Of W rows. The peak of a row that holds NaN may be anything, its sum is NaN; of one that is all -inf as well.
  void merge(int64_t strips, int64_t row, vf& peak, vf& total) const {
    peak = load(max + row);
    for (int64_t s = 1; s < strips; ++s) peak = icl::ICL_ISA::max(peak, load(max + s * rows + row));
    total = vf{};
    for (int64_t s = 0; s < strips; ++s)
      total += load(sum + s * rows + row) * exp(load(max + s * rows + row) - peak);
  }
};

}  // namespace icl::ICL_ISA
