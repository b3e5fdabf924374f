// What the losses give a tile kernel of bfloat16: rows of hidden states, and groups of panels of the weight. A block of
// logits, at most kMostTileRows x kGroupColumns, stays in the first-level cache until it has been read.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/bfloat16_pack.h"
#include "cpu/log_sum_exp.h"
#include "cpu/scratch.h"

namespace icl::ICL_ISA {

constexpr int kPanelVectors = kPanelColumns / W;
constexpr int64_t kGroupColumns = Columns::kGroupPanels * kPanelColumns;

// Columns for the tile kernel: processors that have one have at least 1 MiB of second-level cache.
ICL_INLINE Columns tile_columns(int64_t v, int64_t depth, int64_t max_strips) {
  constexpr int64_t kGroupFloats = 768 * 1024 / 4;
  return {v, depth / 2, max_strips, kPanelColumns, kGroupFloats};
}

ICL_INLINE uint16_t* take_bfloat16(Cutter& cutter, int64_t count) {
  return reinterpret_cast<uint16_t*>(cutter.take(ceil_div(count, 2)));
}

template <typename T>
struct TileWeight {
  const T* weight;         // [V, C]
  const uint16_t* packed;  // all its panels, or null
  const T* bias;           // [V] or null
  int64_t c, v, depth;

  // Panels [first, first + count), in `own` if they are not there yet.
  const uint16_t* panels(int64_t first, int64_t count, uint16_t* own /* [count][depth][kPanelColumns] */) const {
    if (packed) return packed + first * depth * kPanelColumns;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = (first + i) * kPanelColumns;
      pack_pairs(weight + column * c, c, min(v - column, kPanelColumns), c, own + i * depth * kPanelColumns);
    }
    return own;
  }

  // What is added to their logits, -inf beyond V; null: nothing
  const float* offsets(int64_t first, int64_t count, float* own /* [count][kPanelColumns] */) const {
    const int64_t begin = first * kPanelColumns, end = begin + count * kPanelColumns;
    if (!bias && end <= v) return nullptr;
    for (int64_t j = begin; j < end; ++j) own[j - begin] = j >= v ? -INFINITY : bias ? widen(bias[j]) : 0.0f;
    return own;
  }
};

// Rows of bfloat16 lie as the tile kernel takes them if no depth is missing.
template <typename T>
ICL_INLINE bool lies_right(int64_t c) {
  return sizeof(T) == sizeof(uint16_t) && c % kDepthStep == 0;
}

ICL_INLINE void add_offsets(float* logits, int64_t rows, int64_t columns, const float* offsets) {
  for (int64_t r = 0; r < rows; ++r, logits += columns)
    for (int64_t j = 0; j < columns; j += W) store(logits + j, load(logits + j) + load(offsets + j));
}

}  // namespace icl::ICL_ISA
