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
// Columns and rows are cut as in linear_cross_entropy_fwd.cpp, and no sum depends on the number of threads.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/log_sum_exp.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kRowFloats = 64 * 1024 * 1024 / 4;  // of the packed inputs and partial results of a block of rows
constexpr int kWidth = Columns::kGroupPanels * NR;

// w is right to 1e-38. Up to e^20 of that, from kWidth columns, is nothing beside a sum of 1e-19; what is beyond either
// bound is summed again.
constexpr float kFarthest = 20, kSmallest = 1e-19f;

// A block of rows.
struct Block {
  float* hidden;      // [tiles][C][MR]
  float* removed;     // [tiles][A][C][MR]
  float* at_target;   // [1 + A][size], the logit, then its change by each variant
  float* growth;      // [A][strips][size], sum of exp(l - base peak) expm1(y)
  Partial* partial;   // [1 + A], of l, then of l + y
  int64_t first, rows, size;
};

// A row tile against a group of columns.
struct Group {
  alignas(64) float logits[MR][kWidth];
  alignas(64) float weights[MR][kWidth];  // exp(logit - peak)
  alignas(64) float change[MR][kWidth];   // of the logits, by one variant
  float peak[MR], sum[MR];                // of the logits and the weights
};

ICL_INLINE vf load_rows(const float* p /* [MR] */) {
  vf v{};
  std::memcpy(&v, p, MR * sizeof(float));
  return v;
}

ICL_INLINE void store_rows(float* p /* [MR] */, vf v) { std::memcpy(p, &v, MR * sizeof(float)); }

// The products of a row tile with a group of panels: out = sign * product + offsets.
ICL_INLINE void multiply_group(const float* rows /* [C][MR] */, const float* panels /* [count][C][NR] */, int64_t c,
                               int64_t count, float sign, const float* offsets /* [count][NR] or null */,
                               float (*out)[kWidth]) {
  for (int64_t i = 0; i < count; ++i) {
    Tile product;
    multiply(rows, panels + i * c * NR, c, product);
    for (int v = 0; v < NV; ++v) {
      const vf offset = offsets ? load(offsets + i * NR + v * W) : vf{};
      for (int r = 0; r < MR; ++r) store(out[r] + i * NR + v * W, product.at[r][v] * splat(sign) + offset);
    }
  }
}

// growth += w expm1(y) and sum += w exp(y). expm1 is right to 2 ulp of itself, also where y is small; beyond 88, where
// 2^n is none, both may be anything. NaN for NaN.
ICL_INLINE void add_change(vf y, vf w, vf& growth, vf& sum) {
  const Reduced of = reduce(y);
  const vf q = of.tail * (of.r * of.r) + of.r;  // expm1(r): no 1 that a small r would be rounded to
  growth += w * (of.power * q + (of.power - splat(1.0f)));
  sum += w * (of.power * q + of.power);
}

// A row whose logits a variant moves too far for the weights to follow.
void sum_again(const float* logits, float* change, int64_t panels, float base_peak, float base_sum, float& growth,
               float& peak, float& sum) {
  for (int64_t j = 0; j < panels * NR; j += W) store(change + j, load(logits + j) + load(change + j));
  const MaxSum found = max_and_sum(change, panels);
  peak = found.max;
  sum = found.sum;
  // of columns that are all -inf nothing is counted, but NaN would be
  growth = base_peak == -INFINITY ? 0.0f : found.sum * expf(found.max - base_peak) - base_sum;
}

// What a variant does to the rows of a tile, in these columns.
ICL_INLINE void fold_change(Group& g, int64_t panels, float* growth /* [MR] */, float* peak /* [MR] */,
                            float* sum /* [MR] */) {
  vf farthest = splat(-INFINITY);
  bool small = false;
#pragma GCC unroll 1
  for (int r = 0; r < MR; ++r) {
    vf d[NV] = {}, s[NV] = {};
    for (int64_t j = 0; j < panels * NR; j += NR)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const vf y = load(g.change[r] + j + v * W);
        farthest = max(y, farthest);  // in this order: a NaN is dropped, it must not hide the other rows
        add_change(y, load(g.weights[r] + j + v * W), d[v], s[v]);
      }
#pragma GCC unroll 8
    for (int v = 1; v < NV; ++v) d[0] += d[v], s[0] += s[v];
    growth[r] = sum_of_lanes(d[0]);
    sum[r] = sum_of_lanes(s[0]);
    peak[r] = g.peak[r];
    small |= sum[r] < kSmallest;
  }
  if (!small && !(largest_lane(farthest) > kFarthest)) return;
  for (int r = 0; r < MR; ++r) {  // a row alone decides for itself: its neighbours must not cost it its accuracy
    farthest = splat(-INFINITY);
    for (int64_t j = 0; j < panels * NR; j += W) farthest = max(load(g.change[r] + j), farthest);
    if (sum[r] < kSmallest || largest_lane(farthest) > kFarthest)
      sum_again(g.logits[r], g.change[r], panels, g.peak[r], g.sum[r], growth[r], peak[r], sum[r]);
  }
}

struct Scales {  // of what was found before, and of what is found now
  vf before, now;
};

// Partial::add() of the rows of a tile.
ICL_INLINE Scales add_rows(const Partial& partial, int64_t strip, int64_t row, const float* found_peak /* [MR] */,
                           const float* found_sum /* [MR] */, bool begins) {
  float *max_at = partial.max + strip * partial.rows + row, *sum_at = partial.sum + strip * partial.rows + row;
  const vf peak = load_rows(found_peak), sum = load_rows(found_sum);
  if (begins) {
    store_rows(max_at, peak);
    store_rows(sum_at, sum);
    return {vf{}, splat(1.0f)};
  }
  const vf old = load_rows(max_at), top = max(old, peak), reference = top == splat(-INFINITY) ? vf{} : top;
  const Scales scales{exp(old - reference), exp(peak - reference)};
  store_rows(max_at, top);
  store_rows(sum_at, load_rows(sum_at) * scales.before + sum * scales.now);
  return scales;
}

template <typename T>
void run_strip(const CrossEntropyDifference& p, const Columns& columns, const Block& block, int64_t strip,
               int64_t tile_begin, int64_t tile_end, float* panels /* [group][C][NR] */) {
  Group g;
  alignas(64) float offsets[kWidth];
  const Weight<T> weight{static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), p.c, p.v};
  const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
  for (int64_t first = begin; first < end; first += columns.group) {
    const int64_t count = min(columns.group, end - first);
    for (int64_t i = 0; i < count; ++i) weight.pack(first + i, panels + i * p.c * NR, offsets + i * NR);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t row = tile * MR;
      const auto keep_target = [&](int64_t i, const float(*values)[kWidth]) {
        for (int64_t r = 0; r < min(MR, block.rows - row); ++r) {
          const int64_t target = p.targets[block.first + row + r] - first * NR;
          if (target >= 0 && target < count * NR) block.at_target[i * block.size + row + r] = values[r][target];
        }
      };
      multiply_group(block.hidden + row * p.c, panels, p.c, count, 1, offsets, g.logits);
      keep_target(0, g.logits);
      for (int r = 0; r < MR; ++r) {
        const MaxSum found = max_and_sum<true>(g.logits[r], count, g.weights[r]);
        g.peak[r] = found.max;
        g.sum[r] = found.sum;
      }
      const Scales scales = add_rows(block.partial[0], strip, row, g.peak, g.sum, first == begin);
      for (int64_t a = 0; a < p.a; ++a) {
        float growth[MR], peak[MR], sum[MR];
        multiply_group(block.removed + (row * p.a + a * MR) * p.c, panels, p.c, count, -1, nullptr, g.change);
        keep_target(1 + a, g.change);
        fold_change(g, count, growth, peak, sum);
        add_rows(block.partial[1 + a], strip, row, peak, sum, first == begin);
        float* grown = block.growth + (a * columns.strips + strip) * block.size + row;
        const vf before = first == begin ? vf{} : load_rows(grown) * scales.before;
        store_rows(grown, before + load_rows(growth) * scales.now);
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

template <typename T>
void forward(const CrossEntropyDifference& p) {
  const Columns columns(p.v, p.c, 64);
  const int64_t per_row = (1 + p.a) * (p.c + 3 * columns.strips + 1);
  const int64_t size = min(round_up(p.n, W), round_up(clamp(kRowFloats / per_row, W, 8192), W));
  const int threads = p.num_threads;
  // many small tasks, so that no thread waits long for the last; packing the panels again is little beside 512 rows
  const int64_t parts = clamp(ceil_div(32 * threads, columns.strips), 1, ceil_div(size * (1 + p.a), 512));
  const int64_t panel_floats = round_up(columns.group * p.c * NR, 16);
  Block block{};
  float *max, *sum, *panels;
  const Scratch scratch([&](Cutter& cutter) {
    block.hidden = cutter.take(size * p.c);
    block.removed = cutter.take(size * p.a * p.c);
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
      const int64_t tiles = ceil_div(here.rows, MR);
#pragma omp for collapse(2) schedule(static)
      for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t i = 0; i <= p.a; ++i) {
          const int64_t row = tile * MR;
          const void* from = i == 0 ? p.hidden : p.removed;
          pack_rows(static_cast<const T*>(from) + ((i == 0 ? 0 : (i - 1) * p.n) + first + row) * p.c, here.rows - row,
                    p.c, i == 0 ? here.hidden + row * p.c : here.removed + (row * p.a + (i - 1) * MR) * p.c,
                    [](int) { return true; });
        }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < columns.strips * parts; ++task) {
        const int64_t part = task % parts;
        run_strip<T>(p, columns, here, task / parts, tiles * part / parts, tiles * (part + 1) / parts, own_panels);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < here.rows; row += W) finish(p, columns, here, row);
    }
  }
}

}  // namespace

void cross_entropy_difference(const CrossEntropyDifference& p) {
  if (p.n == 0) return;
  if (p.dtype == Dtype::kBFloat16) {
    forward<uint16_t>(p);
  } else {
    forward<float>(p);
  }
}

}  // namespace icl::ICL_ISA
