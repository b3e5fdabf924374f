// The gradients of the weights of exemplar_steps, each used up by Adam while it is in the cache.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/exemplar_work.h"
#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

struct Adam {
  float rate;        // over the bias correction of the first moment
  float root_scale;  // 1 / root of the bias correction of the second
  float keep_first, take_first, keep_second, take_second, eps;

  Adam(const ExemplarSteps& p, int64_t step, double learning_rate)
      : rate(float(learning_rate / (1 - pow(p.beta1, double(step + 1))))),
        root_scale(float(1 / std::sqrt(1 - pow(p.beta2, double(step + 1))))), keep_first(float(p.beta1)),
        take_first(float(1 - p.beta1)), keep_second(float(p.beta2)), take_second(float(1 - p.beta2)),
        eps(float(p.eps)) {}

  ICL_INLINE void update(vf& w, vf& m, vf& v, vf g) const {
    m = m * splat(keep_first) + g * splat(take_first);
    v = v * splat(keep_second) + g * g * splat(take_second);
    w -= splat(rate) * m / (sqrt(v) * splat(root_scale) + splat(eps));
  }

  // `count` weights from `first` on; no gradient: that of the loss is zero
  void run(const Parameter& p, int64_t first, int64_t count, const float* gradient) const {
    if (!p.trainable) return;
    float *w = p.value + first, *m = p.first + first, *v = p.second + first;
    const vf l2 = splat(p.l2);
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      vf a = load(w + i), b = load(m + i), c = load(v + i);
      update(a, b, c, (gradient ? load(gradient + i) : vf{}) + l2 * a);
      store(w + i, a);
      store(m + i, b);
      store(v + i, c);
    }
    if (i == count) return;
    float rest[4][W] = {};
    for (int64_t j = 0; i + j < count; ++j) {
      rest[0][j] = w[i + j], rest[1][j] = m[i + j], rest[2][j] = v[i + j];
      if (gradient) rest[3][j] = gradient[i + j];
    }
    vf a = load(rest[0]), b = load(rest[1]), c = load(rest[2]);
    update(a, b, c, load(rest[3]) + l2 * a);
    store(rest[0], a);
    store(rest[1], b);
    store(rest[2], c);
    for (int64_t j = 0; i + j < count; ++j) w[i + j] = rest[0][j], m[i + j] = rest[1][j], v[i + j] = rest[2][j];
  }
};

struct Update {
  const Sizes& sizes;
  const Member& member;
  Work& work;
  const Adam& adam;
  bool first_layer;   // whether the first of the layers is used
  float* gradient;    // this thread's

  int64_t units() const { return sizes.blocks * (1 + 4 * sizes.layers) + sizes.chunks + 1; }

  void run(int64_t unit) const {
    if (unit < sizes.blocks) return embed_exemplar(unit * kRows);
    unit -= sizes.blocks;
    const int64_t matrices = 4 * sizes.layers;
    if (unit < sizes.blocks * matrices) {
      const int64_t which = unit / sizes.blocks;
      return attention(which / 4, which % 4, unit % sizes.blocks * kRows);
    }
    unit -= sizes.blocks * matrices;
    if (unit < sizes.chunks) return embed_label(unit * kLabelChunk);
    vectors();
  }

  int64_t rows_from(int64_t first) const { return min(kRows, sizes.width - first); }

  void embed_exemplar(int64_t first) const {
    const int64_t rows = rows_from(first), row = sizes.feature_row;
    const Parameter& p = member.of(kEmbedExemplar);
    if (!p.trainable) return;
    multiply(rows, row, work.exemplars, {work.dembedded + first, 1, sizes.row}, {work.features, row},
             {gradient, row});
    update_rows(p, first, rows, sizes.features, row);
    transpose_embedding(first);
  }

  void transpose_embedding(int64_t first) const {
    transpose(member.value(kEmbedExemplar) + first * sizes.features, sizes.features, rows_from(first), sizes.features,
              work.embed_transposed + first, sizes.row);
  }

  void update_rows(const Parameter& p, int64_t first, int64_t rows, int64_t width, int64_t row) const {
    if (width == row) return adam.run(p, first * width, rows * width, gradient);
    for (int64_t r = 0; r < rows; ++r) adam.run(p, (first + r) * width, width, gradient + r * row);
  }

  void attention(int64_t layer, int64_t which, int64_t first) const {
    const int64_t rows = rows_from(first), c = sizes.width;
    const Parameter& p = member.of(layer, kQuery + which);
    if (!p.trainable) return;
    const bool last = layer == sizes.layers - 1;
    const bool used = last ? !(member.copies() && which >= 2) : first_layer;
    if (!used) {
      adam.run(p, first * c, rows * c, nullptr);
    } else {
      differentiate(layer, last, which, first, rows);
      update_rows(p, first, rows, c, sizes.row);
    }
    if (layer == 0 && which < 3) copy_weight(which, first);
  }

  // Of the rows of query, key, value or out
  void differentiate(int64_t layer, bool last, int64_t which, int64_t first, int64_t rows) const {
    const int64_t row = sizes.row;
    const Product to{gradient, row};
    if (layer == 0 && which < 3) {
      multiply(rows, row, work.count, {work.dqkv + which * row + first, 1, 3 * row}, {work.h0, row}, to);
      return;
    }
    for (int64_t i = 0; i < sizes.slices; ++i) {
      const Slice& s = work.slices[i];
      const int64_t place = i * sizes.columns, query = place + (sizes.tokens - 1) * kLanes;
      const auto add = [&](const float* d, int64_t columns, const float* x) {
        multiply(rows, row, columns, {d + first * columns, columns, 1}, {x, row}, to, i > 0);
      };
      if (which == 3 && last) add(s.dlast, kLanes, work.z_rows + i * kLanes * row);
      if (which == 3 && !last) add(s.dx, sizes.columns, work.z0_rows + place * row);
      if (which == 0) add(s.dq, kLanes, work.h_rows + query * row);
      if (which == 1) add(s.dk, sizes.columns, work.h_rows + place * row);
      if (which == 2) add(s.dv, sizes.columns, work.h_rows + place * row);
    }
  }

  // The forms in which tokens read the first layer's weights
  void copy_weight(int64_t which, int64_t first) const {
    const int64_t rows = rows_from(first), c = sizes.width, row = sizes.row;
    const float* from = member.value(0, kQuery + which) + first * c;
    transpose(from, c, rows, c, work.qkv_transposed + which * row + first, 3 * row);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(work.qkv_rows + (which * c + first + r) * row, from + r * c, c * sizeof(float));
  }

  void embed_label(int64_t begin) const {
    const int64_t end = min(begin + kLabelChunk, sizes.labels), c = sizes.width;
    const Parameter& p = member.of(kEmbedLabel);
    int64_t done = begin;
    for (int64_t v = begin; v < end; ++v) {
      const int32_t token = work.label_first[v];
      if (token < 0) continue;
      adam.run(p, done * c, (v - done) * c, nullptr);
      adam.run(p, v * c, c, add_tokens(token));
      done = v + 1;
    }
    adam.run(p, done * c, (end - done) * c, nullptr);
  }

  // The gradients of a label at different positions, in the order in which they were found
  const float* add_tokens(int32_t token) const {
    for (int64_t c = 0; c < sizes.row; c += W) store(gradient + c, vf{});
    for (; token >= 0; token = work.next[token]) add_row(work.dembedded + token * sizes.row, gradient);
    return gradient;
  }

  void add_row(const float* from, float* to) const {
    for (int64_t c = 0; c < sizes.row; c += W) add_to(to + c, load(from + c));
  }

  // Biases, positions and norms
  void vectors() const {
    const int64_t c = sizes.width, row = sizes.row;
    clear(row);
    for (int64_t u = 0; u < work.exemplars; ++u) add_row(work.dembedded + u * row, gradient);
    adam.run(member.of(kEmbedExemplarBias), 0, c, gradient);
    if (member.value(kPosition)) {
      clear(sizes.tokens * row);
      for (int64_t u = 0; u < work.count; ++u)
        add_row(work.dembedded + u * row, gradient + work.position[u] * row);
      for (int64_t t = 0; t < sizes.tokens; ++t) adam.run(member.of(kPosition), t * c, c, gradient + t * row);
    }
    const bool output = !member.copies();
    norm(member.of(kFinalGain), output, [](const Slice& s) { return s.dfinal_gain; });
    norm(member.of(kFinalBias), output, [](const Slice& s) { return s.dfinal_bias; });
    if (sizes.layers == 2) {
      norm(member.of(1, kGain), true, [](const Slice& s) { return s.dgain; });
      norm(member.of(1, kBias), true, [](const Slice& s) { return s.dbias; });
    }
    first_norm();
  }

  void clear(int64_t count) const { std::memset(gradient, 0, count * sizeof(float)); }

  template <typename Gradient>
  ICL_INLINE void norm(const Parameter& p, bool used, Gradient of) const {
    clear(sizes.row);
    for (int64_t i = 0; i < sizes.slices && used; ++i) add_row(of(work.slices[i]), gradient);
    adam.run(p, 0, sizes.width, used ? gradient : nullptr);
  }

  void first_norm() const {
    const int64_t row = sizes.row;
    const float* found = first_layer ? gradient : nullptr;
    clear(row);
    for (int64_t u = 0; u < work.count && first_layer; ++u)
      for (int64_t i = 0; i < row; i += W)
        add_to(gradient + i, load(work.dh0 + u * row + i) * load(work.xhat0 + u * row + i));
    adam.run(member.of(0, kGain), 0, sizes.width, found);
    clear(row);
    for (int64_t u = 0; u < work.count && first_layer; ++u) add_row(work.dh0 + u * row, gradient);
    adam.run(member.of(0, kBias), 0, sizes.width, found);
  }
};

}  // namespace icl::ICL_ISA
