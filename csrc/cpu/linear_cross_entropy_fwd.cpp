// linear_cross_entropy forward: blocks of logits are folded into (largest, sum of exp) while in the first-level cache.
//
// A task takes a strip of columns: it packs a group of panels of the weight into its own second-level cache, runs every
// row tile against them, folds each block of logits, [rows of a tile, group], and goes on to the next group of the
// strip. The strips' results are merged in order, so neither the number of threads nor their speed changes a bit of the
// result. Products are those of float32, or of bfloat16 on a tile kernel.
#include <cmath>
#include <cstdint>

#include "cpu/bfloat16_logits.h"
#include "cpu/log_sum_exp.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kRowFloats = 16 * 1024 * 1024 / 4;  // packed hidden of the rows that are worked on together

struct Block {             // of rows
  Partial partial;         // [strips][size rounded up to W]
  float* at_target;        // [block_rows]
  const int64_t* targets;  // [rows]
  int64_t rows;
};

template <typename T>
struct InFloat32 {
  const LinearCrossEntropyFwd& p;
  const Columns columns{p.v, p.c, 256};
  const int64_t tile_rows = MR, row_floats = p.c, panel_floats = round_up(columns.group * p.c * NR, 16);

  // Rows [row, row + MR) of those from first_row on.
  void prepare(int64_t first_row, int64_t rows, int64_t row, float* hidden) const {
    pack_rows(static_cast<const T*>(p.hidden) + (first_row + row) * p.c, rows - row, p.c, hidden + row * p.c,
              [](int) { return true; });
  }

  // One strip against the row tiles [tile_begin, tile_end).
  void run_strip(const Block& block, int64_t, const float* hidden, int64_t strip, int64_t tile_begin, int64_t tile_end,
                 float* panels /* [group][C][NR] */) const {
    alignas(64) float logits[MR][Columns::kGroupPanels * NR];
    alignas(64) float offsets[Columns::kGroupPanels * NR];
    const Weight<T> weight{static_cast<const T*>(p.weight), static_cast<const Exact<T>*>(p.bias), p.c, p.v};
    const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
    for (int64_t first = begin; first < end; first += columns.group) {
      const int64_t count = min(columns.group, end - first);
      for (int64_t i = 0; i < count; ++i) weight.pack(first + i, panels + i * p.c * NR, offsets + i * NR);
      for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
        for (int64_t i = 0; i < count; ++i) {
          Tile product;
          multiply(hidden + tile * MR * p.c, panels + i * p.c * NR, p.c, product);
          for (int v = 0; v < NV; ++v) {
            const vf offset = load(offsets + i * NR + v * W);
            for (int r = 0; r < MR; ++r) store(logits[r] + i * NR + v * W, product.at[r][v] + offset);
          }
        }
        for (int r = 0; r < MR; ++r) {
          const int64_t row = tile * MR + r;
          block.partial.add(strip, row, max_and_sum(logits[r], count), first == begin);
          if (row >= block.rows) continue;
          const int64_t target = block.targets[row] - first * NR;
          if (target >= 0 && target < count * NR) block.at_target[row] = logits[r][target];
        }
      }
    }
  }
};

template <typename T>
struct OnTiles {
  const LinearCrossEntropyFwd& p;
  const Bfloat16Tile& tile;
  const int64_t depth = padded_depth(p.c);
  const bool in_place = lies_right<T>(p.c);
  const Columns columns = tile_columns(p.v, depth, 256);
  const int64_t tile_rows = tile.rows, row_floats = in_place ? 0 : depth / 2;
  const int64_t panel_floats = p.packed ? 0 : columns.group * depth * kPanelColumns / 2;

  void prepare(int64_t first_row, int64_t rows, int64_t row, float* hidden) const {
    for (int64_t r = row; !in_place && r < min(row + tile_rows, rows); ++r)
      narrow_row(static_cast<const T*>(p.hidden) + (first_row + r) * p.c, p.c,
                 reinterpret_cast<uint16_t*>(hidden) + r * depth);
  }

  void run_strip(const Block& block, int64_t first_row, const float* hidden, int64_t strip, int64_t tile_begin,
                 int64_t tile_end, float* own_panels) const {
    alignas(64) float logits[kMostTileRows * kGroupColumns], own_offsets[kGroupColumns];
    float peak[kMostTileRows], sum[kMostTileRows];
    const TileWeight<T> weight{static_cast<const T*>(p.weight), p.packed, static_cast<const T*>(p.bias), p.c, p.v,
                               depth};
    const uint16_t* rows = in_place ? static_cast<const uint16_t*>(p.hidden) + first_row * p.c
                                    : reinterpret_cast<const uint16_t*>(hidden);
    const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
    for (int64_t first = begin; first < end; first += columns.group) {
      const int64_t count = min(columns.group, end - first), width = count * kPanelColumns;
      const uint16_t* panels = weight.panels(first, count, reinterpret_cast<uint16_t*>(own_panels));
      const float* offsets = weight.offsets(first, count, own_offsets);
      for (int64_t row = tile_begin * tile_rows; row < min(tile_end * tile_rows, block.rows); row += tile_rows) {
        const int64_t here = min(tile_rows, block.rows - row);
        tile.multiply(rows + row * depth, depth, here, panels, count, depth, logits, width, false);
        if (offsets) add_offsets(logits, here, width, offsets);
        for (int64_t r = 0; r < here; ++r) {
          const MaxSum found = max_and_sum<false, kPanelVectors>(logits + r * width, count);
          peak[r] = found.max;
          sum[r] = found.sum;
          const int64_t target = block.targets[row + r] - first * kPanelColumns;
          if (target >= 0 && target < width) block.at_target[row + r] = logits[r * width + target];
        }
        block.partial.add(strip, row, here, peak, sum, first == begin);
      }
    }
  }
};

// The strips' results of W rows, and what becomes of them.
void finish(const LinearCrossEntropyFwd& p, const Columns& columns, const Block& block, int64_t row,
            int64_t first_row) {
  vf peak, sum;
  block.partial.merge(columns.strips, row, peak, sum);
  for (int64_t i = 0; i < min(W, block.rows - row); ++i) {
    const int64_t out = first_row + row + i;
    const bool ignored = block.targets[row + i] == p.ignore_index;
    p.peak[out] = ignored ? 0.0f : peak[i];
    p.log_sum[out] = ignored ? 0.0f : logf(sum[i]);
    p.losses[out] = ignored ? 0.0f : p.log_sum[out] - (block.at_target[row + i] - peak[i]);
  }
}

template <typename Products>
void forward(const LinearCrossEntropyFwd& p, const Products& products) {
  const Columns& columns = products.columns;
  const int64_t row_floats = products.row_floats, panel_floats = products.panel_floats, step = products.tile_rows;
  const int64_t size = min(round_up(p.n, W), round_up(clamp(kRowFloats / max(row_floats, 1), 256, 8192), W));
  const int threads = p.num_threads;
  // a strip is split by rows only where there are too few strips to go round
  const int64_t parts = clamp(ceil_div(4 * threads, columns.strips), 1, ceil_div(size, 128));
  float *hidden, *max, *sum, *at_target, *panels;
  const Scratch scratch([&](Cutter& cutter) {
    hidden = cutter.take(size * row_floats);
    max = cutter.take(columns.strips * size);
    sum = cutter.take(columns.strips * size);
    at_target = cutter.take(size);
    panels = cutter.take(threads * panel_floats);
  });

  for (int64_t first_row = 0; first_row < p.n; first_row += size) {
    const int64_t rows = min(size, p.n - first_row), tiles = ceil_div(rows, step);
    const Block block{{max, sum, size}, at_target, p.targets + first_row, rows};
#pragma omp parallel num_threads(threads)
    {
      float* own_panels = panels + thread_number() * panel_floats;
#pragma omp for schedule(static)
      for (int64_t tile = 0; tile < tiles; ++tile)
        products.prepare(first_row, rows, tile * step, hidden);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < columns.strips * parts; ++task) {
        const int64_t part = task % parts;
        products.run_strip(block, first_row, hidden, task / parts, tiles * part / parts, tiles * (part + 1) / parts,
                           own_panels);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row += W) finish(p, columns, block, row, first_row);
    }
  }
}

}  // namespace

void linear_cross_entropy_fwd(const LinearCrossEntropyFwd& p) {
  const bool narrow = p.dtype == Dtype::kBFloat16;
  if (p.products == Dtype::kFloat32) return forward(p, InFloat32<float>{p});
  if (const Bfloat16Tile* tile = bfloat16_tile()) {
    return narrow ? forward(p, OnTiles<uint16_t>{p, *tile}) : forward(p, OnTiles<float>{p, *tile});
  }
  return narrow ? forward(p, InFloat32<uint16_t>{p}) : forward(p, InFloat32<RoundedFloat>{p});
}

}  // namespace icl::ICL_ISA
