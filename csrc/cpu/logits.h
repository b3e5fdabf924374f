// Logits, a block at a time: a tile of rows of hidden states times a group of panels of the weight, in float32 or on a
// tile kernel of bfloat16. A block stays in the first-level cache until an op's epilogue has read it.
//
// InFloat32 and OnTiles are the same to an op: it packs tiles of rows (or has them where they lie, if `in_place`) and
// panels, and multiplies.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/bfloat16_pack.h"
#include "cpu/log_sum_exp.h"
#include "ops.h"

namespace icl::ICL_ISA {

// What is added to the logits of columns [begin, begin + count), -inf beyond V; null: nothing.
template <typename T>
const float* offsets_of(const T* bias /* [V] or null */, int64_t v, int64_t begin, int64_t count, float* own) {
  if (!bias && begin + count <= v) return nullptr;
  for (int64_t j = begin; j < begin + count; ++j) own[j - begin] = j >= v ? -INFINITY : bias ? widen(bias[j]) : 0.0f;
  return own;
}

ICL_INLINE void add_offsets(float* logits, int64_t rows, int64_t columns, const float* offsets /* or null */) {
  for (int64_t r = 0; offsets && r < rows; ++r, logits += columns)
    for (int64_t j = 0; j < columns; j += W) store(logits + j, load(logits + j) + load(offsets + j));
}

template <typename T>
struct InFloat32 {
  using Element = T;
  static constexpr int64_t kPanel = NR, kColumns = Columns::kGroupPanels * NR;  // columns in a panel, and in a block
  static constexpr int kVectors = NV;                                           // in a panel
  static constexpr int64_t kRows = MR, kStep = MR;  // in a tile; those whose results are merged together

  const T* weight;  // [V, C]
  const int64_t c, v;
  const Columns columns;
  const bool in_place = false;
  const int64_t tile_rows = MR, row_floats = c, panel_floats = columns.group * c * NR;  // of a group

  InFloat32(const void* weight, int64_t c, int64_t v, int64_t max_strips)
      : weight(static_cast<const T*>(weight)), c(c), v(v), columns(v, c, max_strips) {}

  void pack(const T* rows /* [here, C] */, int64_t here, bool negated, float* tile /* [C][MR] */) const {
    pack_rows(rows, here, c, tile, [](int) { return true; });
    for (int64_t i = 0; negated && i < c * MR; ++i) tile[i] = -tile[i];
  }

  const float* panels(int64_t first, int64_t count, float* own /* [count][C][NR] */) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = (first + i) * NR;
      pack_panel(weight + column * c, c, min(v - column, NR), c, own + i * c * NR);
    }
    return own;
  }

  void multiply(const float* tile, int64_t, const float* panels, int64_t count,
                float* out /* [MR][count][NR] */) const {
    for (int64_t i = 0; i < count; ++i) {
      Tile product;
      icl::ICL_ISA::multiply(tile, panels + i * c * NR, c, product);
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) store(out + (r * count + i) * NR + v * W, product.at[r][v]);
    }
  }
};

template <typename T, int64_t kMostPanels = Columns::kGroupPanels>
struct OnTiles {
  using Element = T;
  static constexpr int64_t kPanel = kPanelColumns, kColumns = kMostPanels * kPanelColumns;
  static constexpr int kVectors = kPanelColumns / W;
  static constexpr int64_t kRows = kMostTileRows, kStep = min(W, 8);
  static constexpr int64_t kGroupFloats = 768 * 1024 / 4;  // where there is a tile kernel there is 1 MiB

  const Bfloat16Tile& tile_kernel;
  const T* weight;         // [V, C]
  const uint16_t* packed;  // all its panels, or null
  const int64_t c, v, depth;
  const Columns columns;
  const bool in_place;
  const int64_t tile_rows, row_floats = depth / 2, panel_floats;

  OnTiles(const Bfloat16Tile& kernel, const void* weight, const uint16_t* packed, int64_t c, int64_t v,
          int64_t max_strips)
      : tile_kernel(kernel), weight(static_cast<const T*>(weight)), packed(packed), c(c), v(v), depth(padded_depth(c)),
        columns(v, depth / 2, max_strips, kPanelColumns, kGroupFloats, kMostPanels),
        in_place(sizeof(T) == sizeof(uint16_t) && c == depth), tile_rows(kernel.rows),
        panel_floats(packed ? 0 : columns.group * kPanelColumns * depth / 2) {}

  void pack(const T* rows /* [here, C] */, int64_t here, bool negated, float* tile /* bfloat16 [here][depth] */) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(tile);
    for (int64_t r = 0; r < here; ++r) narrow_row(rows + r * c, c, to + r * depth);
    for (int64_t i = 0; negated && i < here * depth; ++i) to[i] ^= 0x8000;
  }

  const float* panels(int64_t first, int64_t count, float* own /* bfloat16 [count][depth][kPanelColumns] */) const {
    if (packed) return reinterpret_cast<const float*>(packed + first * depth * kPanelColumns);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = (first + i) * kPanelColumns;
      pack_pairs(weight + column * c, c, min(v - column, kPanelColumns), c,
                 reinterpret_cast<uint16_t*>(own) + i * depth * kPanelColumns);
    }
    return own;
  }

  void multiply(const float* tile, int64_t here, const float* panels, int64_t count, float* out) const {
    tile_kernel.multiply(reinterpret_cast<const uint16_t*>(tile), depth, here,
                         reinterpret_cast<const uint16_t*>(panels), count, depth, out, count * kPanelColumns, false);
  }
};

// in_float32(element) or on_tiles(kernel, element). float32 is rounded for products of bfloat16 where there is a kernel
// for these; callers do it elsewhere.
template <typename Float32, typename Tiles>
void with_products(Dtype dtype, Dtype products, Float32 in_float32, Tiles on_tiles) {
  const Bfloat16Tile* kernel = products == Dtype::kBFloat16 ? bfloat16_tile() : nullptr;
  if (dtype == Dtype::kFloat32) {
    kernel ? on_tiles(*kernel, float{}) : in_float32(float{});
  } else {
    kernel ? on_tiles(*kernel, uint16_t{}) : in_float32(uint16_t{});
  }
}

}  // namespace icl::ICL_ISA
