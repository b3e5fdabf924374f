// The forward of one strip of query rows, for frozen_attention (many variants of the values) and smeared_attention
// (mixed keys). Keys come in chunks; their scores are computed once and multiplied with the values of every variant.
#pragma once

#include "cpu/attention_strip.h"
#include "cpu/scratch.h"

namespace icl::ICL_ISA {

// The keys of one head, mixed with their predecessors where `smeared`.
template <typename T>
struct Keys {
  const T* k;  // [T, depth]
  int64_t depth;
  bool smeared;
  float gate;  // share of the key itself; the rest is the previous key's. Key 0 has no previous one

  // rows begin..end-1 as attention sees them, to [end - begin, ld]
  void mix(int32_t begin, int32_t end, float* to, int64_t ld) const {
    if (!smeared) return widen_rows(k + begin * depth, end - begin, depth, to, ld);
    const float rest = 1 - gate;
    for (int32_t j = begin; j < end; ++j, to += ld) {
      const T* row = k + j * depth;
      if (j == 0) {
        widen_rows(row, 1, depth, to, ld);
        continue;
      }
      const T* previous = row - depth;
      int64_t d = 0;
      for (; d + W <= depth; d += W) store(to + d, load(row + d) * splat(gate) + load(previous + d) * splat(rest));
      for (; d < depth; ++d) to[d] = widen(row[d]) * gate + widen(previous[d]) * rest;
      for (; d < ld; ++d) to[d] = 0;
    }
  }
};

// Memory of one thread.
struct ForwardWorkspace {
  float* q;        // [depth, kRows]
  float* scores;   // [chunk, kRows]
  float* keys;     // [T, depth]
  float* values;   // [chunk, width rounded up to W]
  float* sums;     // [variants, kRows, width rounded up to W]
  float* weights;  // [T]
  // of which head which keys it holds: the strips of a head come one after another and use them again
  const void* keys_of;
  int32_t keys_begin, keys_end;

  void cut(Cutter& cutter, int64_t chunk, int64_t depth, int64_t width, int64_t variants, int64_t length) {
    q = cutter.take(depth * kRows), scores = cutter.take(chunk * kRows), keys = cutter.take(length * depth);
    values = cutter.take(chunk * round_up(width, W)), sums = cutter.take(variants * kRows * round_up(width, W));
    weights = cutter.take(length);
    keys_of = nullptr;
  }

  // all keys, [T, depth], of which begin..end-1 can be read
  template <typename T>
  const float* prepare(const Keys<T>& of, int32_t begin, int32_t end) {
    if constexpr (sizeof(T) == 4)
      if (!of.smeared) return of.k;
    if (keys_of != of.k) keys_of = of.k, keys_begin = keys_end = begin;
    if (begin < keys_begin) of.mix(begin, keys_begin, keys + begin * of.depth, of.depth), keys_begin = begin;
    if (end > keys_end) of.mix(keys_end, end, keys + keys_end * of.depth, of.depth), keys_end = end;
    return keys;
  }
};

ICL_INLINE bool is_finite(const float* row, int64_t n) {
  float zeros = 0;
  for (int64_t i = 0; i < n; ++i) zeros += row[i] * 0;
  return zeros == 0;
}

// row = factor * (weights[begin..end-1] . v) of `width` columns, in which a weight of 0 hides a value that is not finite; one that is
// reached makes nan. Summed in the order of product(): where nothing is hidden the two agree.
template <typename T>
static void confine(const float* weights, int32_t begin, int32_t end,
                    const T* v, int64_t ldv,  // [T, ldv]
                    int64_t width, float factor, float* row) {
  for (int64_t c = 0; c < width; ++c) {
    float total = 0, reached = 0;
    for (int32_t j = begin; j < end; ++j) {
      if (weights[j] == 0) continue;
      const float x = widen(v[j * ldv + c]), zero_or_nan = x * 0;
      if (zero_or_nan == zero_or_nan) total = fused(weights[j], x, total);
      reached += zero_or_nan;
    }
    row[c] = total * factor + reached;
  }
}

// Rows of `sums` [strip.rows, ld] that are not finite are computed again, one by one: see confine().
template <typename T>
static void confine_rows(const Strip& strip, const float* keys, int64_t depth, const Softmax& softmax,
                         const ForwardWorkspace& work, const T* v, int64_t width, float* sums, int64_t ld) {
  for (int r = 0; r < strip.rows; ++r) {
    float* row = sums + r * ld;
    if (is_finite(row, width)) continue;
    const int lane = r % W, first_lane = r - lane;
    for (int32_t j = strip.first[r]; j <= strip.last[r]; ++j) {
      float score[W];
      score_tile<1, 1>(work.q + first_lane, keys + j * depth, depth, depth, score);
      work.weights[j] = exp_nonpositive(splat(score[lane] - softmax.peak[r]))[0];
    }
    confine(work.weights, strip.first[r], strip.last[r] + 1, v, width, width, 1 / softmax.total[r], row);
  }
}

// One strip, whose scaled queries are in work.q.
template <typename T>
static void attend(const Strip& strip, const Keys<T>& keys,
                   const T* v, int64_t v_stride,  // variants, v_stride apart, of [T, width]
                   int64_t variants, int64_t width,
                   T* out, int64_t out_stride,  // variants, out_stride apart, of [strip.rows, width]
                   int64_t chunk, ForwardWorkspace& work, Softmax& softmax) {
  const bool in_place = sizeof(T) == 4 && width % W == 0;  // sums live in `out`, values are used where they are
  const int64_t ld = round_up(width, W);
  float inverse[kRows];
  const int64_t depth = keys.depth;
  const float* k = work.prepare(keys, strip.begin, strip.end);
  softmax.reset();
  for (int32_t begin = strip.begin; begin < strip.end; begin += int32_t(chunk)) {
    const int32_t end = min(strip.end, begin + int32_t(chunk));
    const bool first = begin == strip.begin, last = end == strip.end;
    score_chunk(strip, work.q, k + begin * depth, depth, depth, begin, end, work.scores);
    softmax.add_chunk(strip, begin, end, work.scores);
    for (int r = 0; r < kRows; ++r) inverse[r] = 1 / softmax.total[r];
    auto range = [&](int row, int rows, int64_t* from, int64_t* to) { strip.band(row, rows, begin, end, from, to); };
    for (int64_t a = 0; a < variants; ++a) {
      const T* variant = v + a * v_stride;
      T* to = out + a * out_stride;
      const float* values = work.values;
      float* sums = work.sums + (first && last ? 0 : a * kRows * ld);
      if (in_place)
        values = (const float*)(variant + begin * width), sums = (float*)to;
      else
        widen_rows(variant + begin * width, end - begin, width, work.values, ld);
      const bool finite = product<true>(strip.rows, ld, work.scores, kRows, values, ld, sums, ld,
                                        first ? nullptr : softmax.shrink, last ? inverse : nullptr, range);
      if (!last) continue;
      if (!finite) confine_rows(strip, k, depth, softmax, work, variant, width, sums, ld);
      if (!in_place)
        for (int r = 0; r < strip.rows; ++r) narrow_row(sums + r * ld, to + r * width, width);
    }
  }
}

}  // namespace icl::ICL_ISA
