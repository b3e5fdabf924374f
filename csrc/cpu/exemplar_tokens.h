// The distinct tokens of a batch: a batch of 32 sequences of 5 tokens names each of 50 exemplars and 5 labels several
// times, and until attention mixes them, equal tokens are worked on once. Where positions are added, tokens are equal
// at the same position only.
#pragma once

#include <cstdint>

#include "cpu/exemplar_work.h"

namespace icl::ICL_ISA {

struct Tokens {
  const ExemplarSteps& p;
  const Sizes& sizes;
  const Member& member;
  Work& work;

  bool positional() const { return p.position_kind != 0; }

  // One thread's work: numbers the tokens, and finds the places of each.
  void find(const Sequences& from) const {
    const int64_t pairs = sizes.tokens / 2;
    for (int64_t u = work.exemplars; u < work.count; ++u) work.label_first[work.key[u]] = -1;  // of the last step
    for (int64_t i = 0; i < sizes.slots; ++i) work.table[i] = -1;
    work.count = 0;
    for (int64_t b = 0; b < sizes.batch; ++b)
      for (int64_t i = 0; i <= pairs; ++i) {
        const int64_t at = b * (pairs + 1) + i;
        set(b, 2 * i, find_exemplar(from.classes[at] * p.exemplars_per_class + from.exemplars[at], 2 * i));
      }
    work.exemplars = work.count;
    for (int64_t b = 0; b < sizes.batch; ++b)
      for (int64_t i = 0; i < pairs; ++i)
        set(b, 2 * i + 1, find_label(from.labels[b * pairs + i], 2 * i + 1));
    find_places();
  }

  void set(int64_t example, int64_t t, int32_t token) const {
    work.slices[example / kLanes].token[t * kLanes + example % kLanes] = token;
  }

  int32_t add(int64_t key, int64_t t) const {
    work.key[work.count] = key;
    work.position[work.count] = int32_t(t);
    return int32_t(work.count++);
  }

  bool same(int32_t token, int64_t key, int64_t t) const {
    return work.key[token] == key && (!positional() || work.position[token] == t);
  }

  int32_t find_exemplar(int64_t key, int64_t t) const {
    uint64_t hash = uint64_t(key * sizes.tokens + (positional() ? t : 0)) * 0x9e3779b97f4a7c15u;
    for (uint64_t slot = hash >> 32;; ++slot) {
      int32_t& entry = work.table[slot & uint64_t(sizes.slots - 1)];
      if (entry < 0) return entry = add(key, t);
      if (same(entry, key, t)) return entry;
    }
  }

  int32_t find_label(int64_t label, int64_t t) const {
    int32_t* entry = work.label_first + label;
    for (; *entry >= 0; entry = work.next + *entry)
      if (same(*entry, label, t)) return *entry;
    *entry = add(label, t);
    work.next[*entry] = -1;
    return *entry;
  }

  void find_places() const {
    for (int64_t u = 0; u <= work.count; ++u) work.begin[u] = 0;
    each_place([&](int32_t token, int64_t) { ++work.begin[token + 1]; });
    for (int64_t u = 0; u < work.count; ++u) work.begin[u + 1] += work.begin[u];
    each_place([&](int32_t token, int64_t place) { work.places[work.begin[token]++] = int32_t(place); });
    for (int64_t u = work.count; u > 0; --u) work.begin[u] = work.begin[u - 1];
    work.begin[0] = 0;
  }

  template <typename Visit>
  ICL_INLINE void each_place(Visit visit) const {
    for (int64_t t = 0; t < sizes.tokens; ++t)
      for (int64_t b = 0; b < sizes.batch; ++b) {
        const int64_t at = t * kLanes + b % kLanes, slice = b / kLanes;
        visit(work.slices[slice].token[at], slice * sizes.columns + at);
      }
  }

  int64_t blocks() const { return ceil_div(work.count, kTokenBlock); }

  // Embeds the tokens of a block; where the first layer is used, its norm, queries, keys and values too
  void forward(int64_t block, bool first_layer) const {
    const int64_t begin = block * kTokenBlock, end = min(begin + kTokenBlock, work.count);
    const int64_t exemplars = clamp(work.exemplars, begin, end);
    const int64_t row = sizes.row, wide = sizes.feature_row;
    for (int64_t u = begin; u < exemplars; ++u)
      std::memcpy(work.features + u * wide, p.features + work.key[u] * sizes.features, sizes.features * sizeof(float));
    multiply(exemplars - begin, row, sizes.features, {work.features + begin * wide, wide, 1},
             {work.embed_transposed, row}, {work.embedded + begin * row, row});
    for (int64_t u = begin; u < end; ++u) {
      float* to = work.embedded + u * row;
      const bool label = u >= work.exemplars;
      const float* from = label ? member.value(kEmbedLabel) + work.key[u] * sizes.width : to;
      const float* more = label ? nullptr : member.value(kEmbedExemplarBias);
      const float* position = positions() ? positions() + work.position[u] * sizes.width : nullptr;
      for (int64_t c = 0; c < sizes.width; ++c)
        to[c] = from[c] + (more ? more[c] : 0.0f) + (position ? position[c] : 0.0f);
      if (first_layer) norm_row(u);
    }
    if (first_layer)
      multiply(end - begin, 3 * row, sizes.width, {work.h0 + begin * row, row, 1}, {work.qkv_transposed, 3 * row},
               {work.qkv + begin * 3 * row, 3 * row});
  }

  const float* positions() const { return p.position_kind == 1 ? member.value(kPosition) : p.positions; }

  void norm_row(int64_t u) const {
    const float* x = work.embedded + u * sizes.row;
    float *xhat = work.xhat0 + u * sizes.row, *out = work.h0 + u * sizes.row;
    const float *gain = member.value(0, kGain), *bias = member.value(0, kBias);
    const int64_t c = sizes.width;
    const float mean = row_sum([&](int64_t i) { return x[i]; }) / float(c);
    const float variance = row_sum([&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(c);
    const float scale = 1.0f / __builtin_sqrtf(variance + p.norm_eps);
    work.inverse0[u] = scale;
    for (int64_t i = 0; i < c; ++i) {
      xhat[i] = (x[i] - mean) * scale;
      out[i] = xhat[i] * gain[i] + bias[i];
    }
  }

  // Over the width of the model, in W sums
  template <typename Term>
  ICL_INLINE float row_sum(Term term) const {
    float sums[W] = {};
    int64_t i = 0;
    for (; i + W <= sizes.width; i += W)
      for (int j = 0; j < W; ++j) sums[j] += term(i + j);
    for (int j = 0; i < sizes.width; ++i, ++j) sums[j] += term(i);
    return sum_of_lanes(load(sums));
  }

  // Gradients of a block of tokens, from those of their places
  void backward(int64_t block, bool first_layer) const {
    const int64_t begin = block * kTokenBlock, end = min(begin + kTokenBlock, work.count), row = sizes.row;
    for (int64_t u = begin; u < end; ++u) {
      add_places(u, work.direct_places, row, work.dembedded);
      if (first_layer) add_places(u, work.dqkv_places, 3 * row, work.dqkv);
    }
    if (!first_layer) return;
    multiply(end - begin, row, sizes.width, {work.dqkv + begin * 3 * row, 3 * row, 1}, {work.qkv_rows, row},
             {work.dh0 + begin * row, row});
    for (int64_t which = 1; which < 3; ++which)
      multiply(end - begin, row, sizes.width, {work.dqkv + begin * 3 * row + which * row, 3 * row, 1},
               {work.qkv_rows + which * sizes.width * row, row}, {work.dh0 + begin * row, row}, true);
    for (int64_t u = begin; u < end; ++u) norm_row_back(u);
  }

  void add_places(int64_t u, const float* from, int64_t row, float* to) const {
    to += u * row;
    for (int64_t i = work.begin[u]; i < work.begin[u + 1]; ++i) {
      const float* place = from + work.places[i] * row;
      const bool first = i == work.begin[u];
      for (int64_t c = 0; c < row; c += W) store(to + c, first ? load(place + c) : load(to + c) + load(place + c));
    }
  }

  void norm_row_back(int64_t u) const {
    const float *d = work.dh0 + u * sizes.row, *xhat = work.xhat0 + u * sizes.row, *gain = member.value(0, kGain);
    float* to = work.dembedded + u * sizes.row;
    const float scale = work.inverse0[u], share = 1.0f / float(sizes.width);
    const float mean = row_sum([&](int64_t i) { return d[i] * gain[i]; }) * share;
    const float along = row_sum([&](int64_t i) { return d[i] * gain[i] * xhat[i]; }) * share;
    for (int64_t i = 0; i < sizes.width; ++i) to[i] += (d[i] * gain[i] - mean - xhat[i] * along) * scale;
  }
};

}  // namespace icl::ICL_ISA
