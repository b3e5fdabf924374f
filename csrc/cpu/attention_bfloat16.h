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
#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

constexpr int kMostTileRows = 64;

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
  int32_t first[kMostTileRows], last[kMostTileRows];
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

// [count] keys as panels, pairs over the depth; smeared ones are mixed in float32 and rounded once.
template <typename T>
static void pack_keys(const Keys<T>& keys, int64_t count, float* mixed /* [kPanelColumns, depth] */, uint16_t* panels) {
  for (int64_t j = 0; j < count; j += kPanelColumns, panels += padded_depth(keys.depth) * kPanelColumns) {
    const int64_t here = min(count - j, kPanelColumns);
    if (keys.smeared) {
      keys.mix(int32_t(j), int32_t(j + here), mixed, keys.depth);
      pack_pairs(mixed, keys.depth, here, keys.depth, panels);
    } else {
      pack_pairs(keys.k + j * keys.depth, keys.depth, here, keys.depth, panels);
    }
  }
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

// scores of keys begin..end-1 -> exp(scale * score - peak), rounded; 0 where the row does not see the key
static inline void softmax_row(int32_t begin, int32_t end, int32_t first, int32_t last, float scale,
                               float* scores, uint16_t* weights,  // [end - begin]
                               float* peak, float* total) {
  constexpr int kVectors = kPanelColumns / W;
  const vi lanes = lane_numbers(std::make_integer_sequence<int, W>());
  vf best[kVectors];
  for (vf& b : best) b = splat(-INFINITY);
  for (int32_t j = begin; j < end; j += kPanelColumns, scores += kPanelColumns) {
    const bool all = j >= first && j + kPanelColumns - 1 <= last;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      vf x = load(scores + v * W) * splat(scale);
      const vi key = lanes + (j + v * W);
      if (!all) x = ((key >= first) & (key <= last)) ? x : splat(-INFINITY);
      store(scores + v * W, x);
      best[v] = max(x, best[v]);  // drops a NaN: its exp is NaN, and so is the sum
    }
  }
  scores -= end - begin;
  for (int v = 1; v < kVectors; ++v) best[0] = max(best[v], best[0]);
  *peak = largest_lane(best[0]);
  const vf base = splat(*peak == -INFINITY ? 0 : *peak);
  vf sums[kVectors] = {};
  for (int32_t j = begin; j < end; j += kPanelColumns, scores += kPanelColumns, weights += kPanelColumns)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      store(weights + v * W, exp_nonpositive(load(scores + v * W) - base));
      sums[v] += load(weights + v * W);
    }
  for (int v = 1; v < kVectors; ++v) sums[0] += sums[v];
  *total = sum_of_lanes(sums[0]);
}

// Memory of one thread.
struct TileWorkspace {
  uint16_t* queries;  // [strip_rows, padded depth]
  uint16_t* keys;     // panels of keys
  uint16_t* values;   // [variants], panels of columns
  float* scores;      // [strip_rows, row_step]
  uint16_t* weights;  // [strip_rows, row_step]
  float* block;       // [strip_rows, kPanelColumns]
  float* row;         // [length]: one row's weights
  float* mixed;       // [kPanelColumns, depth]
  int64_t packed;     // whose keys and values it holds; -1: none's

  void cut(Cutter& cutter, const Bfloat16Tile& tile, int64_t length, int64_t depth, int64_t width, int64_t variants) {
    const int64_t rows = strip_rows(tile), keys_length = round_up(length, kPanelColumns);
    queries = take_bfloat16(cutter, rows * padded_depth(depth));
    keys = take_bfloat16(cutter, keys_length * padded_depth(depth));
    values = take_bfloat16(cutter, variants * keys_length * round_up(width, kPanelColumns));
    scores = cutter.take(rows * row_step(length)), weights = take_bfloat16(cutter, rows * row_step(length));
    block = cutter.take(rows * kPanelColumns), row = cutter.take(length), mixed = cutter.take(kPanelColumns * depth);
    packed = -1;
  }
};

// The weights of a strip whose queries are in work.queries, not yet divided by their sums.
static inline void weigh(const Bfloat16Tile& tile, const TileStrip& strip, int64_t length, int64_t depth, float scale,
                         TileWorkspace& work, float* peak, float* total) {
  const int64_t padded = padded_depth(depth), step = row_step(length);
  tile.multiply(work.queries, padded, strip.rows, work.keys + strip.begin * padded,
                (strip.end - strip.begin) / kPanelColumns, padded, work.scores, step, false);
  for (int r = 0; r < strip.rows; ++r)
    softmax_row(strip.begin, strip.end, strip.first[r], strip.last[r], scale, work.scores + r * step,
                work.weights + r * step, peak + r, total + r);
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
      vf check{};
      for (int r = 0; r < strip.rows; ++r)
        for (int64_t i = r * kPanelColumns; i < (r + 1) * kPanelColumns; i += W) {
          const vf x = load(work.block + i) * splat(factor[r]);
          check += x * vf{};
          store(work.block + i, x);
        }
      const bool finite = sum_of_lanes(check) == 0;
      for (int r = 0; r < strip.rows; ++r) {
        float* row = work.block + r * kPanelColumns;
        if (!finite && !is_finite(row, columns)) {
          widen_rows(work.weights + r * step, 1, strip.last[r] + 1 - strip.begin, work.row + strip.begin, 0);
          confine(work.row, strip.first[r], strip.last[r] + 1, v + a * v_stride + c, width, columns, factor[r], row);
        }
        narrow_row(row, out + a * out_stride + r * width + c, columns);
      }
    }
}

}  // namespace icl::ICL_ISA
