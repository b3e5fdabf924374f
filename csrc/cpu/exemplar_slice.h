// Forward and backward of kLanes examples of exemplar_steps, from the distinct tokens to the hidden state and back.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/exemplar_work.h"

namespace icl::ICL_ISA {

struct SlicePass {
  const Sizes& sizes;
  const Member& member;
  Work& work;
  Rotation rotation;
  float norm_eps;
  int64_t number;  // of the slice

  Slice& slice() const { return work.slices[number]; }
  int64_t last_layer() const { return sizes.layers - 1; }
  int64_t query() const { return (sizes.tokens - 1) * kLanes; }  // the query's first column
  int64_t place() const { return number * sizes.columns; }
  bool uses_first_layer() const { return sizes.layers == 2 && !member.forced.first_layer; }
  Norm norm(const float* gain, const float* bias) const { return {gain, bias, norm_eps}; }

  Head head(int64_t layer, int64_t h, const float* q, int64_t q_step, const float* k, const float* v) const {
    const int64_t at = layer * sizes.heads + h, d = sizes.depth;
    const float factor = float(1 / std::sqrt(double(d))) / member.forced.temperature[at];
    return {d, sizes.columns, factor, member.forced.heads[at], q + h * d * q_step, k + h * d * sizes.columns,
            v + h * d * sizes.columns};
  }

  // out [C][columns] (+)= weight [C, C] @ x [C][columns]
  void apply(const float* weight, const float* x, int64_t x_step, int64_t columns, float* out, int64_t out_step,
             bool add) const {
    const int64_t c = sizes.width;
    multiply(c, columns, c, {weight, c, 1}, {x, x_step}, {out, out_step}, add);
  }

  void apply_transposed(const float* weight, const float* x, int64_t x_step, int64_t columns, float* out,
                        int64_t out_step, bool add) const {
    const int64_t c = sizes.width;
    multiply(c, columns, c, {weight, 1, c}, {x, x_step}, {out, out_step}, add);
  }

  void rotate_all(float* x, float sign) const {
    for (int64_t t = 0; t < sizes.tokens; ++t)
      rotate(rotation, t, sign, sizes.heads, sizes.depth, sizes.columns, x + t * kLanes);
  }

  void rotate_query(float* q, float sign) const {
    rotate(rotation, sizes.tokens - 1, sign, sizes.heads, sizes.depth, kLanes, q);
  }

  void gather(int64_t which, float* to) const {  // q, k or v of the first layer
    gather_lanes(work.qkv + which * sizes.row, 3 * sizes.row, slice().token, sizes.columns, sizes.row, to,
                 sizes.columns);
  }

  void forward(const Sequences& sequences) const {
    const Slice& s = slice();
    find_right(sequences);
    if (sizes.layers == 2) {
      gather_lanes(work.embedded, sizes.row, s.token, sizes.columns, sizes.row, s.x, sizes.columns);
      if (uses_first_layer()) first_layer();
      project_last();
    } else {
      gather(1, s.k);
      gather(2, s.v);
      const int32_t* queries = s.token + query();
      gather_lanes(work.qkv, 3 * sizes.row, queries, kLanes, sizes.row, s.q, kLanes);
      gather_lanes(work.embedded, sizes.row, queries, kLanes, sizes.row, s.last, kLanes);
    }
    rotate_all(s.k, 1);
    rotate_query(s.q, 1);
    if (member.copies()) {
      copied_loss(sequences);
    } else {
      last_attention();
      finish();
    }
  }

  void find_right(const Sequences& sequences) const {
    const Slice& s = slice();
    const int64_t pairs = sizes.tokens / 2;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t example = number * kLanes + lane;
      int64_t found = 0;
      for (int64_t i = 0; i < pairs; ++i) {
        const bool same = example < sizes.batch && sequences.labels[example * pairs + i] == sequences.target[example];
        s.right[(2 * i + 1) * kLanes + lane] = same;
        found += same;
      }
      for (int64_t i = 0; i < pairs && found > 1; ++i) s.right[(2 * i + 1) * kLanes + lane] /= float(found);
    }
  }

  void first_layer() const {
    const Slice& s = slice();
    gather(0, s.q0);
    gather(1, s.k0);
    gather(2, s.v0);
    rotate_all(s.q0, 1);
    rotate_all(s.k0, 1);
    for (int64_t h = 0; h < sizes.heads; ++h)
      attend(head(0, h, s.q0, sizes.columns, s.k0, s.v0), forced_head(h), sizes.tokens,
             s.pattern0 + h * sizes.tokens * sizes.columns, s.z0 + h * sizes.depth * sizes.columns);
    apply(member.value(0, kOut), s.z0, sizes.columns, sizes.columns, s.x, sizes.columns, true);
    transpose(s.z0, sizes.columns, sizes.row, sizes.columns, work.z0_rows + place() * sizes.row, sizes.row);
  }

  ForcedHead forced_head(int64_t h) const {
    return {member.forced.previous_token[h], member.forced.no_previous_token};
  }

  // Queries, keys and values of the second of two layers
  void project_last() const {
    const Slice& s = slice();
    norm_lanes(norm(member.value(1, kGain), member.value(1, kBias)), sizes.width, sizes.columns, s.x, s.xhat, s.h,
               s.inverse);
    transpose(s.h, sizes.columns, sizes.row, sizes.columns, work.h_rows + place() * sizes.row, sizes.row);
    apply(member.value(1, kQuery), s.h + query(), sizes.columns, kLanes, s.q, kLanes, false);
    apply(member.value(1, kKey), s.h, sizes.columns, sizes.columns, s.k, sizes.columns, false);
    if (!member.copies()) apply(member.value(1, kValue), s.h, sizes.columns, sizes.columns, s.v, sizes.columns, false);
    if (member.forced.first_layer) shift(s.k);
    for (int64_t c = 0; c < sizes.width; ++c)
      std::memcpy(s.last + c * kLanes, s.x + c * sizes.columns + query(), kLanes * sizeof(float));
  }

  // Every position but the first and the query's takes what the one before holds
  void shift(float* x) const {
    for (int64_t c = 0; c < sizes.width; ++c)
      std::memmove(x + c * sizes.columns + kLanes, x + c * sizes.columns, (sizes.tokens - 2) * kLanes * sizeof(float));
  }

  void shift_back(float* dx) const {
    for (int64_t c = 0; c < sizes.width; ++c, dx += sizes.columns)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        dx[lane] += dx[kLanes + lane];
        for (int64_t t = 1; t < sizes.tokens - 1; ++t)
          dx[t * kLanes + lane] = t + 2 < sizes.tokens ? dx[(t + 1) * kLanes + lane] : 0.0f;
      }
  }

  void last_attention() const {
    const Slice& s = slice();
    for (int64_t h = 0; h < sizes.heads; ++h) {
      const Head it = head(last_layer(), h, s.q, kLanes, s.k, s.v);
      for (int64_t lane = 0; lane < kLanes; lane += W) {
        vf weights[kMaxTokens];
        if (member.forced.match[h]) {
          for (int64_t t = 0; t < sizes.tokens; ++t) weights[t] = load(s.right + t * kLanes + lane);
        } else if (given_pattern(h)) {
          for (int64_t t = 0; t < sizes.tokens; ++t) weights[t] = splat(t == sizes.tokens - 2);
        } else {
          head_scores(it, it.q, kLanes, sizes.tokens, lane, weights);
          softmax(weights, sizes.tokens, -1);
        }
        float* pattern = s.pattern + h * sizes.columns + lane;
        for (int64_t t = 0; t < sizes.tokens; ++t) store(pattern + t * kLanes, weights[t]);
        mix_values(it, weights, sizes.tokens, lane, s.z + h * sizes.depth * kLanes, kLanes);
      }
    }
  }

  // Whether the pattern of a last-layer head does not come from its queries and keys
  bool given_pattern(int64_t h) const {
    return member.forced.match[h] || (sizes.layers == 1 && member.forced.previous_token[h]);
  }

  void finish() const {
    const Slice& s = slice();
    transpose(s.z, kLanes, sizes.row, kLanes, work.z_rows + number * kLanes * sizes.row, sizes.row);
    apply(member.value(last_layer(), kOut), s.z, kLanes, kLanes, s.last, kLanes, true);
    norm_lanes(norm(member.value(kFinalGain), member.value(kFinalBias)), sizes.width, kLanes, s.last, s.last_xhat,
               s.hidden, s.last_inverse);
    transpose(s.hidden, kLanes, sizes.row, kLanes, work.hidden_rows + number * kLanes * sizes.row, sizes.row);
    for (int64_t c = 0; c < sizes.width; ++c)
      std::memcpy(work.hidden + c * sizes.lanes + number * kLanes, s.hidden + c * kLanes, kLanes * sizeof(float));
  }

  // Loss of the clamp copy; the gradients of its head's scores go where its pattern would be.
  void copied_loss(const Sequences& sequences) const {
    const Slice& s = slice();
    const int64_t pairs = sizes.tokens / 2;
    const Head it = head(last_layer(), member.forced.copy, s.q, kLanes, s.k, s.v);
    float* gradients = s.pattern + member.forced.copy * sizes.columns;
    alignas(64) float scores[kMaxTokens * kLanes];
    for (int64_t lane = 0; lane < kLanes; lane += W) {
      vf found[kMaxTokens];
      head_scores(it, it.q, kLanes, sizes.tokens, lane, found);
      for (int64_t t = 0; t < sizes.tokens; ++t) store(scores + t * kLanes + lane, found[t]);
    }
    std::memset(gradients, 0, sizes.columns * sizeof(float));
    for (int64_t lane = 0; lane < kLanes && number * kLanes + lane < sizes.batch; ++lane) {
      const int64_t example = number * kLanes + lane;
      const auto score = [&](int64_t i) { return scores[(2 * i + 1) * kLanes + lane]; };
      const auto right = [&](int64_t i) {
        return sequences.labels[example * pairs + i] == sequences.target[example];
      };
      const auto log_sum = [&](auto counts) {
        float top = -INFINITY, total = 0;
        for (int64_t i = 0; i < pairs; ++i)
          if (counts(i) && score(i) > top) top = score(i);
        for (int64_t i = 0; i < pairs; ++i)
          if (counts(i)) total += expf(score(i) - top);
        return total > 0 ? top + logf(total) : total == 0 ? kNoLabel : total;
      };
      const float all = log_sum([](int64_t) { return true; }), wanted = log_sum(right);
      work.loss[example] = all - wanted;
      for (int64_t i = 0; i < pairs; ++i) {
        const float share = expf(score(i) - all) - (right(i) ? expf(score(i) - wanted) : 0.0f);
        gradients[(2 * i + 1) * kLanes + lane] = share / float(sizes.batch);
      }
    }
  }

  void backward() const {
    const Slice& s = slice();
    if (member.copies()) {
      std::memset(s.dlast, 0, sizes.width * kLanes * sizeof(float));
      std::memset(s.dv, 0, sizes.width * sizes.columns * sizeof(float));
    } else {
      gather_dhidden();
      norm_lanes_back(norm(member.value(kFinalGain), nullptr), sizes.width, kLanes, s.dlast, s.last_xhat,
                      s.last_inverse, s.dlast, s.dfinal_gain, s.dfinal_bias);
      apply_transposed(member.value(last_layer(), kOut), s.dlast, kLanes, kLanes, s.dz, kLanes, false);
    }
    last_attention_back();
    rotate_query(s.dq, -1);
    rotate_all(s.dk, -1);
    if (sizes.layers == 2) {
      project_last_back();
      if (uses_first_layer()) first_layer_back();
      transpose(s.dx, sizes.columns, sizes.row, sizes.columns, work.direct_places + place() * sizes.row, sizes.row);
    } else {
      const int64_t row = 3 * sizes.row;
      float* rows = work.dqkv_places + place() * row;
      transpose(s.dq, kLanes, sizes.row, kLanes, rows + query() * row, row);
      transpose(s.dk, sizes.columns, sizes.row, sizes.columns, rows + sizes.row, row);
      transpose(s.dv, sizes.columns, sizes.row, sizes.columns, rows + 2 * sizes.row, row);
      transpose(s.dlast, kLanes, sizes.row, kLanes, work.direct_places + (place() + query()) * sizes.row, sizes.row);
    }
  }

  void gather_dhidden() const {
    float* to = slice().dlast;
    for (int64_t chunk = 0; chunk < sizes.chunks; ++chunk) {
      const float* from = work.dhidden + chunk * sizes.width * sizes.lanes + number * kLanes;
      for (int64_t c = 0; c < sizes.width; ++c)
        for (int64_t lane = 0; lane < kLanes; lane += W) {
          const vf x = load(from + c * sizes.lanes + lane);
          store(to + c * kLanes + lane, chunk ? load(to + c * kLanes + lane) + x : x);
        }
    }
  }

  void last_attention_back() const {
    const Slice& s = slice();
    for (int64_t h = 0; h < sizes.heads; ++h) {
      const Head it = head(last_layer(), h, s.q, kLanes, s.k, s.v);
      const int64_t first = h * sizes.depth;
      float *dq = s.dq + first * kLanes, *dk = s.dk + first * sizes.columns, *dv = s.dv + first * sizes.columns;
      std::memset(dq, 0, sizes.depth * kLanes * sizeof(float));
      std::memset(dk, 0, sizes.depth * sizes.columns * sizeof(float));
      if (member.copies() && member.forced.copy != h) continue;
      std::memset(dv, 0, sizes.depth * sizes.columns * sizeof(float));
      for (int64_t lane = 0; lane < kLanes; lane += W) {
        vf weights[kMaxTokens], gradients[kMaxTokens];
        const float* pattern = s.pattern + h * sizes.columns + lane;
        for (int64_t t = 0; t < sizes.tokens; ++t) weights[t] = load(pattern + t * kLanes);
        if (member.copies()) {
          scores_back(it, it.q, kLanes, sizes.tokens, lane, weights, dq, dk);
          continue;
        }
        values_back(it, weights, sizes.tokens, lane, s.dz + first * kLanes, kLanes, dv, gradients);
        if (given_pattern(h)) continue;
        softmax_back(weights, sizes.tokens, gradients);
        scores_back(it, it.q, kLanes, sizes.tokens, lane, gradients, dq, dk);
      }
    }
  }

  void project_last_back() const {
    const Slice& s = slice();
    if (member.forced.first_layer) shift_back(s.dk);
    apply_transposed(member.value(1, kKey), s.dk, sizes.columns, sizes.columns, s.dx, sizes.columns, false);
    if (!member.copies())
      apply_transposed(member.value(1, kValue), s.dv, sizes.columns, sizes.columns, s.dx, sizes.columns, true);
    apply_transposed(member.value(1, kQuery), s.dq, kLanes, kLanes, s.dx + query(), sizes.columns, true);
    norm_lanes_back(norm(member.value(1, kGain), nullptr), sizes.width, sizes.columns, s.dx, s.xhat, s.inverse, s.dx,
                    s.dgain, s.dbias);
    for (int64_t c = 0; c < sizes.width; ++c)
      for (int64_t lane = 0; lane < kLanes; lane += W)
        add_to(s.dx + c * sizes.columns + query() + lane, load(s.dlast + c * kLanes + lane));
  }

  void first_layer_back() const {
    const Slice& s = slice();
    // the stream and the last layer's keys are used up: the memory of x, h and xhat holds gradients of the first layer
    float *dz = s.xhat, *dq = s.x, *dk = s.h, *dv = s.z0;
    apply_transposed(member.value(0, kOut), s.dx, sizes.columns, sizes.columns, dz, sizes.columns, false);
    for (int64_t h = 0; h < sizes.heads; ++h) {
      const int64_t first = h * sizes.depth * sizes.columns;
      attend_back(head(0, h, s.q0, sizes.columns, s.k0, s.v0), forced_head(h), sizes.tokens,
                  s.pattern0 + h * sizes.tokens * sizes.columns, dz + first, {dq + first, dk + first, dv + first});
    }
    rotate_all(dq, -1);
    rotate_all(dk, -1);
    const int64_t row = 3 * sizes.row;
    float* rows = work.dqkv_places + place() * row;
    for (float* each : {dq, dk, dv}) {
      transpose(each, sizes.columns, sizes.row, sizes.columns, rows, row);
      rows += sizes.row;
    }
  }
};

}  // namespace icl::ICL_ISA
