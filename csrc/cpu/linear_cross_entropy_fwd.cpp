// linear_cross_entropy forward: tiles of logits are folded into (largest, sum of exp) while in the first-level cache.
//
// A task takes a strip of columns: it packs a group of panels of the weight into its own second-level cache, runs every
// row tile against them, folds each [MR, group] block of logits, and goes on to the next group of the strip. The
// strips' results are merged in order, so neither the number of threads nor their speed changes a bit of the result.
#include <cmath>
#include <cstdint>

#include "cpu/log_sum_exp.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kRowFloats = 16 * 1024 * 1024 / 4;  // packed hidden of the rows that are worked on together

struct Block {  // of rows
  const float* hidden;     // [block_rows / MR][C][MR]
  Partial partial;         // [strips][size rounded up to W]
  float* at_target;        // [block_rows]
  const int64_t* targets;  // [rows]
  int64_t rows;
};

// One strip against the row tiles [tile_begin, tile_end).
template <typename T>
void run_strip(const LinearCrossEntropyFwd& p, const Columns& columns, const Block& block, int64_t strip,
               int64_t tile_begin, int64_t tile_end, float* panels /* [group][C][NR] */) {
  alignas(64) float logits[MR][Columns::kGroupPanels * NR];
  alignas(64) float offsets[Columns::kGroupPanels * NR];
  const Weight<T> weight{static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), p.c, p.v};
  const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
  for (int64_t first = begin; first < end; first += columns.group) {
    const int64_t count = min(columns.group, end - first);
    for (int64_t i = 0; i < count; ++i) weight.pack(first + i, panels + i * p.c * NR, offsets + i * NR);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      for (int64_t i = 0; i < count; ++i) {
        Tile product;
        multiply(block.hidden + tile * MR * p.c, panels + i * p.c * NR, p.c, product);
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

template <typename T>
void forward(const LinearCrossEntropyFwd& p) {
  const Columns columns(p.v, p.c, 256);
  const int64_t width = clamp(p.c, 1, INT32_MAX);
  const int64_t size = min(round_up(p.n, W), round_up(clamp(kRowFloats / width, 256, 8192), W));
  const int threads = p.num_threads;
  // a strip is split by rows only where there are too few strips to go round
  const int64_t parts = clamp(ceil_div(4 * threads, columns.strips), 1, ceil_div(size, 16 * MR));
  const int64_t panel_floats = round_up(columns.group * p.c * NR, 16);
  float *hidden, *max, *sum, *at_target, *panels;
  const Scratch scratch([&](Cutter& cutter) {
    hidden = cutter.take(size * p.c);
    max = cutter.take(columns.strips * size);
    sum = cutter.take(columns.strips * size);
    at_target = cutter.take(size);
    panels = cutter.take(threads * panel_floats);
  });

  for (int64_t first_row = 0; first_row < p.n; first_row += size) {
    const int64_t rows = min(size, p.n - first_row), tiles = ceil_div(rows, MR);
    const Block block{hidden, {max, sum, size}, at_target, p.targets + first_row, rows};
#pragma omp parallel num_threads(threads)
    {
      float* own_panels = panels + thread_number() * panel_floats;
#pragma omp for schedule(static)
      for (int64_t tile = 0; tile < tiles; ++tile)
        pack_rows(static_cast<const T*>(p.hidden) + (first_row + tile * MR) * p.c, rows - tile * MR, p.c,
                  hidden + tile * MR * p.c, [](int) { return true; });
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < columns.strips * parts; ++task) {
        const int64_t part = task % parts;
        run_strip<T>(p, columns, block, task / parts, tiles * part / parts, tiles * (part + 1) / parts, own_panels);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row += W) finish(p, columns, block, row, first_row);
    }
  }
}

}  // namespace

void linear_cross_entropy_fwd(const LinearCrossEntropyFwd& p) {
  if (p.dtype == Dtype::kBFloat16) {
    forward<uint16_t>(p);
  } else {
    forward<float>(p);
  }
}

}  // namespace icl::ICL_ISA
