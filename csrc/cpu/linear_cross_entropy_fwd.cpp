// linear_cross_entropy forward: blocks of logits are folded into (largest, sum of exp) while in the first-level cache.
//
// A task takes a strip of columns: it packs a group of panels of the weight into its own second-level cache, runs every
// row tile against them, folds each block of logits, [rows of a tile, group], and goes on to the next group of the
// strip. The strips' results are merged in order, so neither the number of threads nor their speed changes a bit of the
// result. Products are those of float32, or of bfloat16 on a tile kernel.
#include <cmath>
#include <cstdint>

#include "cpu/log_sum_exp.h"
#include "cpu/logits.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kRowFloats = 16 * 1024 * 1024 / 4;  // packed hidden of the rows that are worked on together
constexpr int64_t kMostStrips = 256;

struct Block {             // of rows
  const float* hidden;     // in tiles, as the products take them
  Partial partial;         // [strips][size rounded up to W]
  float* at_target;        // [block_rows]
  const int64_t* targets;  // [rows]
  int64_t rows;
};

// One strip against the row tiles [tile_begin, tile_end).
template <typename Products>
void run_strip(const LinearCrossEntropyFwd& p, const Products& products, const Block& block, int64_t strip,
               int64_t tile_begin, int64_t tile_end, float* own_panels) {
  alignas(64) float logits[Products::kRows * Products::kColumns], own_offsets[Products::kColumns];
  float peak[Products::kRows], sum[Products::kRows];
  const auto* bias = static_cast<const typename Products::Element*>(p.bias);
  const Columns& columns = products.columns;
  const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
  for (int64_t first = begin; first < end; first += columns.group) {
    const int64_t count = min(columns.group, end - first), column = first * Products::kPanel;
    const int64_t width = count * Products::kPanel;
    const float* panels = products.panels(first, count, own_panels);
    const float* offsets = offsets_of(bias, p.v, column, width, own_offsets);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = tile * products.tile_rows, here = min(products.tile_rows, block.rows - row);
      products.multiply(block.hidden + row * products.row_floats, here, panels, count, logits);
      add_offsets(logits, here, width, offsets);
      for (int64_t r = 0; r < here; ++r) {
        const MaxSum found = max_and_sum<false, Products::kVectors>(logits + r * width, count);
        peak[r] = found.max;
        sum[r] = found.sum;
        const int64_t target = block.targets[row + r] - column;
        if (target >= 0 && target < width) block.at_target[row + r] = logits[r * width + target];
      }
      block.partial.add(strip, row, here, peak, sum, first == begin);
    }
  }
}

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
  const int64_t row_floats = products.row_floats, panel_floats = round_up(products.panel_floats, 16);
  const int64_t step = products.tile_rows;
  const int64_t fit = clamp(kRowFloats / clamp(row_floats, 1, INT32_MAX), 256, 8192);
  const int64_t size = min(round_up(p.n, W), round_up(fit, W));
  const int threads = p.num_threads;
  // a strip is split by rows only where there are too few strips to go round
  const int64_t parts = clamp(ceil_div(4 * threads, columns.strips), 1, ceil_div(size, 128));
  float *hidden, *max, *sum, *at_target, *panels;
  const Scratch scratch([&](Cutter& cutter) {
    hidden = cutter.take(products.in_place ? 0 : size * row_floats);
    max = cutter.take(columns.strips * size);
    sum = cutter.take(columns.strips * size);
    at_target = cutter.take(size);
    panels = cutter.take(threads * panel_floats);
  });

  for (int64_t first_row = 0; first_row < p.n; first_row += size) {
    const int64_t rows = min(size, p.n - first_row), tiles = ceil_div(rows, step);
    const auto* from = static_cast<const typename Products::Element*>(p.hidden) + first_row * p.c;
    const float* in_use = products.in_place ? reinterpret_cast<const float*>(from) : hidden;
    const Block block{in_use, {max, sum, size}, at_target, p.targets + first_row, rows};
#pragma omp parallel num_threads(threads)
    {
      float* own_panels = panels + thread_number() * panel_floats;
#pragma omp for schedule(static)
      for (int64_t tile = 0; tile < (products.in_place ? 0 : tiles); ++tile)
        products.pack(from + tile * step * p.c, min(step, rows - tile * step), false,
                      hidden + tile * step * row_floats);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < columns.strips * parts; ++task) {
        const int64_t part = task % parts;
        run_strip(p, products, block, task / parts, tiles * part / parts, tiles * (part + 1) / parts, own_panels);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row += W) finish(p, columns, block, row, first_row);
    }
  }
}

}  // namespace

void linear_cross_entropy_fwd(const LinearCrossEntropyFwd& p) {
  with_products(
      p.dtype, p.dtype,
      [&](auto element) { forward(p, InFloat32<decltype(element)>(p.weight, p.c, p.v, kMostStrips)); },
      [&](const Bfloat16Tile& kernel, auto element) {
        forward(p, OnTiles<decltype(element)>(kernel, p.weight, nullptr, p.c, p.v, kMostStrips));
      });
}

}  // namespace icl::ICL_ISA
