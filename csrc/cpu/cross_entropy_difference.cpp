// cross_entropy_difference: how the losses change when each variant's rows are taken from the hidden states.
//
// With l the logits, y = -removed W^T their change and w = exp(l - peak), a variant needs from every column
//     growth = sum w expm1(y)      and      sum w exp(y),
// both from one polynomial. growth / sum w is what the partition function grows by, exact where y is small; the other
// sum is exact where the partition function shrinks to little. A tile of w is computed once and stays in the
// first-level cache while all variants are folded against it; a variant then costs its product and half an exp more.
//
// Where a removal moves a logit so far that w exp(y) leaves the range of a float, the block's row is summed again from
// l + y about its own peak: what is kept of a variant is (peak, sum) for that reason, and not the sum alone.
//
// Columns and rows are cut as in linear_cross_entropy_fwd.cpp, with as many columns in a block as leave what variants
// read and write in that cache, and no sum depends on the number of threads.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/log_sum_exp.h"
#include "cpu/logits.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kRowFloats = 64 * 1024 * 1024 / 4;  // of the packed inputs and partial results of a block of rows
constexpr int64_t kMostStrips = 64, kMostTilePanels = 4;

// w is right to 1e-38. Up to e^20 of that, from a block's columns, is nothing beside a sum of 1e-19; what is beyond
// either bound is summed again.
constexpr float kFarthest = 20, kSmallest = 1e-19f;

// A block of rows.
struct Block {
  float* hidden;      // [tiles][tile of rows]
  float* removed;     // [tiles][A][tile of rows], negated
  float* at_target;   // [1 + A][size], the logit, then its change by each variant
  float* growth;      // [A][strips][size], sum of exp(l - base peak) expm1(y)
  Partial* partial;   // [1 + A], of l, then of l + y
  int64_t first, rows, size;
};

// A tile of rows against a group of columns.
template <typename Products>
struct Group {
  static constexpr int64_t kRows = round_up(Products::kRows, W);

  int64_t rows, count, width;  // panels and columns
  alignas(64) float logits[Products::kRows * Products::kColumns];   // [rows][width]
  alignas(64) float weights[Products::kRows * Products::kColumns];  // exp(logit - peak)
  alignas(64) float change[Products::kRows * Products::kColumns];   // of the logits, by one variant
  float peak[kRows] = {}, sum[kRows] = {};    // of the logits and the weights
  float before[kRows] = {}, now[kRows] = {};  // what the sums so far and those of this group are scaled by
};

// What a variant does to a group's rows.
template <typename Products>
struct Found {
  static constexpr int64_t kRows = Group<Products>::kRows;
  float growth[kRows] = {}, peak[kRows] = {}, sum[kRows] = {};
};

// growth += w expm1(y) and sum += w exp(y). expm1 is right to 2 ulp of itself, also where y is small; beyond 88, where
// 2^n is none, both may be anything. NaN for NaN.
ICL_INLINE void add_change(vf y, vf w, vf& growth, vf& sum) {
  const Reduced of = reduce(y);
  const vf q = of.tail * (of.r * of.r) + of.r;  // expm1(r): no 1 that a small r would be rounded to
  growth += w * (of.power * q + (of.power - splat(1.0f)));
  sum += w * (of.power * q + of.power);
}

// A row whose logits a variant moves too far for the weights to follow.
template <int V>
void sum_again(const float* logits, float* change, int64_t count, float base_peak, float base_sum, float& growth,
               float& peak, float& sum) {
  for (int64_t j = 0; j < count * V * W; j += W) store(change + j, load(logits + j) + load(change + j));
  const MaxSum found = max_and_sum<false, V>(change, count);
  peak = found.max;
  sum = found.sum;
  // of columns that are all -inf nothing is counted, but NaN would be
  growth = base_peak == -INFINITY ? 0.0f : found.sum * expf(found.max - base_peak) - base_sum;
}

template <typename Products>
ICL_INLINE void fold_change(Group<Products>& g, Found<Products>& found) {
  constexpr int V = Products::kVectors;
  vf farthest = splat(-INFINITY), growth[Group<Products>::kRows] = {}, sum[Group<Products>::kRows] = {};
#pragma GCC unroll 1
  for (int64_t r = 0; r < g.rows; ++r) {
    const float *change = g.change + r * g.width, *weights = g.weights + r * g.width;
    vf d[V] = {}, s[V] = {};
    for (int64_t j = 0; j < g.width; j += V * W)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const vf y = load(change + j + v * W);
        farthest = max(y, farthest);  // in this order: a NaN is dropped, it must not hide the other rows
        add_change(y, load(weights + j + v * W), d[v], s[v]);
      }
#pragma GCC unroll 8
    for (int v = 1; v < V; ++v) d[0] += d[v], s[0] += s[v];
    growth[r] = d[0];
    sum[r] = s[0];
    found.peak[r] = g.peak[r];
  }
  bool small = false;
  for (int64_t r = 0; r < g.rows; r += W) {
    store(found.growth + r, sums_of_lanes(growth + r));
    store(found.sum + r, sums_of_lanes(sum + r));
    for (int64_t i = r; i < min(r + W, g.rows); ++i) small |= found.sum[i] < kSmallest;
  }
  if (!small && !(largest_lane(farthest) > kFarthest)) return;
  // a row alone decides for itself: its neighbours must not cost it its accuracy
  for (int64_t r = 0; r < g.rows; ++r) {
    float* change = g.change + r * g.width;
    farthest = splat(-INFINITY);
    for (int64_t j = 0; j < g.width; j += W) farthest = max(load(change + j), farthest);
    if (found.sum[r] < kSmallest || largest_lane(farthest) > kFarthest)
      sum_again<V>(g.logits + r * g.width, change, g.count, g.peak[r], g.sum[r], found.growth[r], found.peak[r],
                   found.sum[r]);
  }
}

// kStep values of a row each
template <int64_t kStep>
ICL_INLINE vf load_rows(const float* p) {
  vf v{};
  std::memcpy(&v, p, kStep * sizeof(float));
  return v;
}

template <int64_t kStep>
ICL_INLINE void store_rows(float* p, vf v) {
  std::memcpy(p, &v, kStep * sizeof(float));
}

struct Scales {  // of what was found before, and of what is found now
  vf before, now;
};

// Partial::add() of kStep rows.
template <int64_t kStep>
ICL_INLINE Scales add_rows(const Partial& partial, int64_t strip, int64_t row, const float* found_peak,
                           const float* found_sum, bool begins) {
  float *max_at = partial.max + strip * partial.rows + row, *sum_at = partial.sum + strip * partial.rows + row;
  const vf peak = load_rows<kStep>(found_peak), sum = load_rows<kStep>(found_sum);
  if (begins) {
    store_rows<kStep>(max_at, peak);
    store_rows<kStep>(sum_at, sum);
    return {vf{}, splat(1.0f)};
  }
  const vf old = load_rows<kStep>(max_at), top = max(old, peak), reference = top == splat(-INFINITY) ? vf{} : top;
  const Scales scales{exp(old - reference), exp(peak - reference)};
  store_rows<kStep>(max_at, top);
  store_rows<kStep>(sum_at, load_rows<kStep>(sum_at) * scales.before + sum * scales.now);
  return scales;
}

template <typename Products>
void run_strip(const CrossEntropyDifference& p, const Products& products, const Block& block, int64_t strip,
               int64_t tile_begin, int64_t tile_end, float* own_panels) {
  constexpr int64_t kStep = Products::kStep;
  Group<Products> g;
  alignas(64) float own_offsets[Products::kColumns];
  const auto* bias = static_cast<const typename Products::Element*>(p.bias);
  const Columns& columns = products.columns;
  const int64_t tile_floats = products.tile_rows * products.row_floats;
  const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
  for (int64_t first = begin; first < end; first += columns.group) {
    const int64_t column = first * Products::kPanel;
    g.count = min(columns.group, end - first);
    g.width = g.count * Products::kPanel;
    const float* panels = products.panels(first, g.count, own_panels);
    const float* offsets = offsets_of(bias, p.v, column, g.width, own_offsets);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = tile * products.tile_rows;
      g.rows = min(products.tile_rows, block.rows - row);
      const auto keep_target = [&](int64_t i, const float* values) {
        for (int64_t r = 0; r < g.rows; ++r) {
          const int64_t target = p.targets[block.first + row + r] - column;
          if (target >= 0 && target < g.width) block.at_target[i * block.size + row + r] = values[r * g.width + target];
        }
      };
      products.multiply(block.hidden + tile * tile_floats, g.rows, panels, g.count, g.logits);
      add_offsets(g.logits, g.rows, g.width, offsets);
      keep_target(0, g.logits);
      for (int64_t r = 0; r < g.rows; ++r) {
        const MaxSum found =
            max_and_sum<true, Products::kVectors>(g.logits + r * g.width, g.count, g.weights + r * g.width);
        g.peak[r] = found.max;
        g.sum[r] = found.sum;
      }
      for (int64_t r = 0; r < g.rows; r += kStep) {
        const Scales scales = add_rows<kStep>(block.partial[0], strip, row + r, g.peak + r, g.sum + r, first == begin);
        store_rows<kStep>(g.before + r, scales.before);
        store_rows<kStep>(g.now + r, scales.now);
      }
      for (int64_t a = 0; a < p.a; ++a) {
        Found<Products> found;
        products.multiply(block.removed + (tile * p.a + a) * tile_floats, g.rows, panels, g.count, g.change);
        keep_target(1 + a, g.change);
        fold_change(g, found);
        float* grown = block.growth + (a * columns.strips + strip) * block.size + row;
        for (int64_t r = 0; r < g.rows; r += kStep) {
          add_rows<kStep>(block.partial[1 + a], strip, row + r, found.peak + r, found.sum + r, first == begin);
          const vf before = first == begin ? vf{} : load_rows<kStep>(grown + r) * load_rows<kStep>(g.before + r);
          store_rows<kStep>(grown + r, before + load_rows<kStep>(found.growth + r) * load_rows<kStep>(g.now + r));
        }
      }
    }
  }
}

void finish(const CrossEntropyDifference& p, const Columns& columns, const Block& block, int64_t row) {
  vf peak, sum;
  const Partial& base = block.partial[0];
  base.merge(columns.strips, row, peak, sum);
  const int64_t rows = min(W, block.rows - row), out = block.first + row;
  const float* logit = block.at_target + row;
  for (int64_t i = 0; i < rows; ++i) p.base[out + i] = logf(sum[i]) - (logit[i] - peak[i]);
  for (int64_t a = 0; a < p.a; ++a) {
    vf growth{}, own_peak, own_sum;
    for (int64_t s = 0; s < columns.strips; ++s)
      growth += load(block.growth + (a * columns.strips + s) * block.size + row) *
                exp(load(base.max + s * block.size + row) - peak);
    block.partial[1 + a].merge(columns.strips, row, own_peak, own_sum);
    const float* change = block.at_target + (1 + a) * block.size + row;
    for (int64_t i = 0; i < rows; ++i) {
      const float grown = growth[i] / sum[i];
      float difference;
      if (std::fabs(grown) <= 0.5f) {
        difference = log1pf(grown) - change[i];
      } else {  // growth may be infinite or NaN here, where own_sum is right
        difference = own_peak[i] - peak[i] + logf(own_sum[i] / sum[i]) - change[i];
        if (logit[i] == -INFINITY) difference = NAN;  // one infinite loss less another
      }
      p.difference[a * p.n + out + i] = difference;
    }
  }
}

template <typename Products>
void forward(const CrossEntropyDifference& p, const Products& products) {
  using T = typename Products::Element;
  const Columns& columns = products.columns;
  const int64_t step = products.tile_rows, tile_floats = step * products.row_floats;
  const int64_t per_row = (1 + p.a) * (products.row_floats + 3 * columns.strips + 1);
  const int64_t size = min(round_up(p.n, W), round_up(clamp(kRowFloats / per_row, W, 8192), W));
  const int threads = p.num_threads;
  // many small tasks, so that no thread waits long for the last; packing the panels again is little beside 512 rows
  const int64_t parts = clamp(ceil_div(32 * threads, columns.strips), 1, ceil_div(size * (1 + p.a), 512));
  const int64_t panel_floats = round_up(products.panel_floats, 16), most_tiles = ceil_div(size, step);
  Block block{};
  float *max, *sum, *panels;
  const Scratch scratch([&](Cutter& cutter) {
    block.hidden = cutter.take(most_tiles * tile_floats);
    block.removed = cutter.take(most_tiles * p.a * tile_floats);
    block.at_target = cutter.take((1 + p.a) * size);
    block.growth = cutter.take(p.a * columns.strips * size);
    block.partial = reinterpret_cast<Partial*>(cutter.take((1 + p.a) * int64_t(sizeof(Partial)) / 4 + 1));
    max = cutter.take((1 + p.a) * columns.strips * size);
    sum = cutter.take((1 + p.a) * columns.strips * size);
    panels = cutter.take(threads * panel_floats);
  });
  for (int64_t i = 0; i <= p.a; ++i)
    block.partial[i] = {max + i * columns.strips * size, sum + i * columns.strips * size, size};
  block.size = size;

#pragma omp parallel num_threads(threads)
  {
    float* own_panels = panels + thread_number() * panel_floats;
    for (int64_t first = 0; first < p.n; first += size) {
      Block here = block;
      here.first = first;
      here.rows = min(size, p.n - first);
      const int64_t tiles = ceil_div(here.rows, step);
#pragma omp for collapse(2) schedule(static)
      for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t i = 0; i <= p.a; ++i) {
          const int64_t row = tile * step;
          const T* from = static_cast<const T*>(i == 0 ? p.hidden : p.removed) + (i == 0 ? 0 : (i - 1) * p.n * p.c);
          products.pack(from + (first + row) * p.c, min(step, here.rows - row), i > 0,
                        i == 0 ? here.hidden + tile * tile_floats : here.removed + (tile * p.a + i - 1) * tile_floats);
        }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < columns.strips * parts; ++task) {
        const int64_t part = task % parts;
        run_strip(p, products, here, task / parts, tiles * part / parts, tiles * (part + 1) / parts, own_panels);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < here.rows; row += W) finish(p, columns, here, row);
    }
  }
}

}  // namespace

void cross_entropy_difference(const CrossEntropyDifference& p) {
  if (p.n == 0) return;
  with_products(
      p.dtype, p.products,
      [&](auto element) { forward(p, InFloat32<decltype(element)>(p.weight, p.c, p.v, kMostStrips)); },
      [&](const Bfloat16Tile& kernel, auto element) {
        forward(p, OnTiles<decltype(element), kMostTilePanels>(kernel, p.weight, p.packed, p.c, p.v, kMostStrips));
      });
}

}  // namespace icl::ICL_ISA
