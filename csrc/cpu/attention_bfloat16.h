// Attention whose products are a tile kernel's (bfloat16_tile.h): what attention_strip.h and attention_forward.h are in
// float32. Keys and values are packed once for the strips of a head. Scores lie with the keys along the lanes; weights
// are rounded to bfloat16 and divided by the sum of the rounded ones, so that a mean of equal values is that value.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "cpu/attention_forward.h"
#include "cpu/bfloat16_pack.h"
#include "cpu/bfloat16_tile.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

constexpr int64_t kMostStripRows = 2 * kMostTileRows;

// Rows that are multiplied at a time. Few, as half of what lies above the diagonal of a strip is computed in vain.
ICL_INLINE int64_t strip_rows(const Bfloat16Tile& tile) { return 2 * tile.rows; }

// Elements between rows of keys: a line more than the keys, or long rows would share the same few places of the cache
ICL_INLINE int64_t row_step(int64_t length) { return padded_depth(length) + kDepthStep; }

ICL_INLINE uint16_t* take_bfloat16(Cutter& cutter, int64_t elements) {
  return reinterpret_cast<uint16_t*>(cutter.take(ceil_div(elements, 2)));
}

// Which keys the rows of a strip see: each at least one.
struct TileStrip {
  int rows;
  int32_t first[kMostStripRows], last[kMostStripRows];
  int32_t begin, end;  // keys that some row sees, to whole panels

  void see(int r, int64_t position, int64_t window) {
    last[r] = int32_t(position);
    first[r] = window > 0 && window <= position ? int32_t(position - window + 1) : 0;
  }

  void finish() {
    begin = INT32_MAX, end = 0;
    for (int r = 0; r < rows; ++r) begin = min(begin, first[r]), end = max(end, last[r] + 1);
    begin = begin / kPanelColumns * kPanelColumns, end = int32_t(round_up(end, kPanelColumns));
  }
};

// k [length, depth] as panels of keys, pairs over the depth
template <typename T>
static void pack_keys(const T* k, int64_t length, int64_t depth, uint16_t* panels) {
  for (int64_t j = 0; j < length; j += kPanelColumns, panels += padded_depth(depth) * kPanelColumns)
    pack_pairs(k + j * depth, depth, min(length - j, kPanelColumns), depth, panels);
}

// v [length, width] as panels of its columns, pairs over the keys
template <typename T>
static void pack_values(const T* v, int64_t length, int64_t width, uint16_t* panels) {
  for (int64_t c = 0; c < width; c += kPanelColumns, panels += padded_depth(length) * kPanelColumns)
    pack_rows(v + c, width, length, min(width - c, kPanelColumns), panels);
}

template <int... I>
ICL_INLINE vi lane_numbers(std::integer_sequence<int, I...>) {
  return vi{I...};
}

// To bfloat16, half away from zero: fewer operations than to even. A NaN that came of numbers in bfloat16 stays one.
ICL_INLINE vf rounded(vf x) { return (vf)(((vu)x + 0x8000u) & 0xffff0000u); }

// 2 W rounded numbers
template <int... I>
ICL_INLINE void store_rounded(uint16_t* to, vf first, vf second, std::integer_sequence<int, I...>) {
  using Halves = uint16_t __attribute__((vector_size(ICL_VECTOR_BYTES)));
  const Halves upper = __builtin_shufflevector((Halves)first, (Halves)second, (2 * I + 1)...);
  std::memcpy(to, &upper, sizeof upper);
}

ICL_INLINE void store_rounded(uint16_t* to, vf first, vf second) {
  store_rounded(to, first, second, std::make_integer_sequence<int, 2 * W>());
}

// Scores of keys mixed with their predecessors are mixed scores: keys need no rounding again. `own` is the share of the
// key itself, `rest` that of the one before it; both times the factor on all scores. Key 0 has itself before it.
struct Smear {
  float own, rest;

  static Smear none(float scale) { return {scale, 0}; }
  static Smear of(float gate, float scale) { return {gate * scale, (1 - gate) * scale}; }
};

// W scores, to the same bits wherever they are mixed; kSmeared: one before the first is read too
template <bool kSmeared>
ICL_INLINE vf mixed_scores(const float* scores, const Smear& smear) {
  const vf own = load(scores) * splat(smear.own);
  return kSmeared ? fused(load(scores - 1), splat(smear.rest), own) : own;
}

// What a softmax is divided by: the sum of the weights as they are rounded, for their products, and as they were.
struct Totals {
  float rounded, exact;
};

// scores of keys begin..end-1 -> exp(mixed score - peak), rounded; 0 where the row does not see the key
template <bool kSmeared>
static Totals softmax_row(int32_t begin, int32_t end, int32_t first, int32_t last, const Smear& smear,
                          float* scores, uint16_t* weights,  // [end - begin]
                          float* peak) {
  constexpr int kVectors = kPanelColumns / W;
  const vi lanes = lane_numbers(std::make_integer_sequence<int, W>());
  vf best[kVectors];
  for (vf& b : best) b = splat(-INFINITY);
  // the last first: a score is read again for the key after it
  for (int32_t j = end - int32_t(kPanelColumns); j >= begin; j -= int32_t(kPanelColumns)) {
    const bool all = j >= first && j + kPanelColumns - 1 <= last;
#pragma GCC unroll 8
    for (int v = kVectors - 1; v >= 0; --v) {
      const int32_t key = j + v * W;
      vf x = mixed_scores<kSmeared>(scores + key - begin, smear);
      if (!all) x = ((lanes + key >= first) & (lanes + key <= last)) ? x : splat(-INFINITY);
      store(scores + key - begin, x);
      best[v] = max(x, best[v]);  // drops a NaN: its exp is NaN, and so is the sum
    }
  }
  for (int v = 1; v < kVectors; ++v) best[0] = max(best[v], best[0]);
  *peak = largest_lane(best[0]);
  const vf base = splat(*peak == -INFINITY ? 0 : *peak);
  vf sums[kVectors] = {}, exact_sums[kVectors] = {};
  for (int32_t j = begin; j < end; j += kPanelColumns, scores += kPanelColumns, weights += kPanelColumns)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v += 2) {
      const vf one = exp_nonpositive(load(scores + v * W) - base);
      const vf other = exp_nonpositive(load(scores + (v + 1) * W) - base);
      exact_sums[v] += one, exact_sums[v + 1] += other;
      store_rounded(weights + v * W, rounded(one), rounded(other));
      sums[v] += rounded(one), sums[v + 1] += rounded(other);
    }
  for (int v = 1; v < kVectors; ++v) sums[0] += sums[v], exact_sums[0] += exact_sums[v];
  return {sum_of_lanes(sums[0]), sum_of_lanes(exact_sums[0])};
}

// Memory of one thread.
struct TileWorkspace {
  uint16_t* queries;  // [strip_rows, padded depth]
  uint16_t* keys;     // panels of keys
  uint16_t* values;   // [variants], panels of columns
  float* scores;      // [strip_rows, row_step], and room for a score before them
  uint16_t* weights;  // [strip_rows, row_step]
  float* block;       // [strip_rows, kPanelColumns]
  float* row;         // [length]: one row's weights
  int64_t packed;     // whose keys and values it holds; -1: none's

  void cut(Cutter& cutter, const Bfloat16Tile& tile, int64_t length, int64_t depth, int64_t width, int64_t variants) {
    const int64_t rows = strip_rows(tile), keys_length = round_up(length, kPanelColumns);
    queries = take_bfloat16(cutter, rows * padded_depth(depth));
    keys = take_bfloat16(cutter, keys_length * padded_depth(depth));
    values = take_bfloat16(cutter, variants * keys_length * round_up(width, kPanelColumns));
    scores = cutter.take(kPanelColumns + rows * row_step(length)) + kPanelColumns;
    weights = take_bfloat16(cutter, rows * row_step(length));
    block = cutter.take(rows * kPanelColumns), row = cutter.take(length);
    packed = -1;
  }
};

// run(unit, workspace) for all units: the strips of a head, those of the next, ... cut(Cutter&, workspace) takes its
// memory.
template <typename Cut, typename Run>
static void for_each_strip(int64_t threads, int64_t units, int64_t strips, Cut cut, Run run) {
  TileWorkspace none;
  Cutter measure{nullptr};
  cut(measure, none);
  const int64_t floats = measure.used;
  // strips that a thread takes in a row: as few threads as can be pack the same keys and values
  const int64_t taken = clamp(units / (4 * threads), 1, strips);
  float* memory = nullptr;
  const Scratch scratch([&](Cutter& cutter) { memory = cutter.take(threads * floats); });
#pragma omp parallel num_threads(int(threads))
  {
    TileWorkspace work;
    Cutter cutter{memory + thread_number() * floats};
    cut(cutter, work);
#pragma omp for schedule(dynamic, int(taken))
    for (int64_t unit = 0; unit < units; ++unit) run(unit, work);
  }
}

// What keys a strip's products run over: with their predecessors where they are mixed.
template <bool kSmeared>
ICL_INLINE int32_t first_key(const TileStrip& strip) {
  return kSmeared && strip.begin > 0 ? strip.begin - int32_t(kPanelColumns) : strip.begin;
}

// scores [rows, step] of keys first_key()..end-1. Returns those of key `begin`, which have one before them.
template <bool kSmeared>
static float* score_strip(const Bfloat16Tile& tile, const TileStrip& strip, const uint16_t* queries,
                          const uint16_t* keys, int64_t depth, float* scores, int64_t step) {
  const int64_t padded = padded_depth(depth), first = first_key<kSmeared>(strip);
  tile.multiply(queries, padded, strip.rows, keys + first * padded, (strip.end - first) / kPanelColumns, padded, scores,
                step, false);
  if (kSmeared && first == strip.begin)  // in the gap between rows
    for (int r = 0; r < strip.rows; ++r) scores[r * step - 1] = scores[r * step];
  return scores + (strip.begin - first);
}

// The weights of a strip whose queries are in work.queries, not yet divided by their sums.
template <bool kSmeared>
static void weigh(const Bfloat16Tile& tile, const TileStrip& strip, int64_t length, int64_t depth, const Smear& smear,
                  TileWorkspace& work, float* peak, Totals* totals) {
  const int64_t step = row_step(length);
  float* scores = score_strip<kSmeared>(tile, strip, work.queries, work.keys, depth, work.scores, step);
  for (int r = 0; r < strip.rows; ++r)
    totals[r] = softmax_row<kSmeared>(strip.begin, strip.end, strip.first[r], strip.last[r], smear, scores + r * step,
                                      work.weights + r * step, peak + r);
}

// out = factor * work.weights @ v for every variant, from the panels in work.values.
template <typename T>
static void apply(const Bfloat16Tile& tile, const TileStrip& strip, const float* factor,  // [rows]
                  const T* v, int64_t v_stride,  // variants, v_stride apart, of [length, width]
                  int64_t variants, int64_t length, int64_t width,
                  T* out, int64_t out_stride,  // variants, out_stride apart, of [rows, width]
                  TileWorkspace& work) {
  const int64_t panel_size = round_up(length, kPanelColumns) * kPanelColumns, step = row_step(length);
  const uint16_t* panel = work.values + strip.begin * kPanelColumns;
  for (int64_t a = 0; a < variants; ++a)
    for (int64_t c = 0; c < width; c += kPanelColumns, panel += panel_size) {
      const int64_t columns = min(width - c, kPanelColumns);
      tile.multiply(work.weights, step, strip.rows, panel, 1, strip.end - strip.begin, work.block, kPanelColumns,
                    false);
      T* to = out + a * out_stride + c;
      vf check{};
      for (int r = 0; r < strip.rows; ++r)
        for (int64_t i = 0; i < columns; i += W) {
          const vf x = load(work.block + r * kPanelColumns + i) * splat(factor[r]);
          check += x * vf{};
          store_some(to + r * width + i, x, columns - i);
        }
      if (sum_of_lanes(check) == 0) continue;
      for (int r = 0; r < strip.rows; ++r) {
        float* row = work.block + r * kPanelColumns;
        if (is_finite(row, columns)) continue;
        widen_rows(work.weights + r * step, 1, strip.last[r] + 1 - strip.begin, work.row + strip.begin, 0);
        confine(work.row, strip.first[r], strip.last[r] + 1, v + a * v_stride + c, width, columns, factor[r], row);
        narrow_row(row, to + r * width, columns);
      }
    }
}

}  // namespace icl::ICL_ISA
