// head_ablation_cross_entropy: the losses with each head of the last attention layer removed, at low rank.
//
// With xc the centred residual stream, O the rows of W_O^h centred, g the gain and b the bias of the norm, and W the
// unembedding, the logits without head h are
//     ((xc g) W^T - z_h ((O g) W^T)) / sd_h + b W^T + bias,    sd_h^2 = mean((xc - z_h O)^2) + eps.
// The first product is shared by all heads; (O g) W^T and b W^T are computed once for each panel of W, and a head then
// costs a product of depth D for each tile, an exp and a sum. The variance is summed from the differences and not from
// var - 2 cov + z G z^T, which loses its digits when a head wrote most of the residual stream.
//
// Products are those of float32 whatever the dtype: their operands are not the inputs, and rounding xc g and (O g) W^T
// to bfloat16 leaves errors of a hundredth of an effect; in two parts each vdpbf16ps takes as long.
#include <cmath>
#include <cstdint>

#include "cpu/log_sum_exp.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kRowFloats = 16 * 1024 * 1024 / 4;  // of the packed inputs and partial results of a block of rows

template <typename T>
float value(const void* of, int64_t i, float otherwise) {
  return of ? widen(static_cast<const T*>(of)[i]) : otherwise;
}

// The heads' output matrices, centred: as `b` of z @ O, and with the gain as `a` of (O g) W^T.
struct Heads {
  float* wide;    // [H][ceil(C / NR)][D][NR]
  float* scaled;  // [ceil((H D + 1) / MR)][C][MR], row H D is the norm's bias
  int64_t rows;   // H D + 1
};

// A block of rows.
struct Block {
  float* centred;    // [tiles][C][MR], with the gain
  float* z;          // [tiles][H][D][MR]
  float* deviation;  // [H + 1][size], 1 / sd; row 0 is the base
  float* at_target;  // [H + 1][size]
  Partial* partial;  // [H + 1]
  int64_t first, rows, size;
};

struct Own {  // of a thread
  float* panels;    // [group][C][NR]
  float* products;  // [group][round_up(H D + 1, MR)][NR]
  float* offsets;   // [group][NR]
  float* x;         // [MR][round_up(C, NR)], the centred stream of a row tile
};

// Row i of W_O, i = h D + d, without its mean.
template <typename T>
void pack_head_row(const HeadAblation& p, int64_t i, const Heads& heads) {
  const T* row = static_cast<const T*>(p.w_o) + i * p.c;
  double mean = 0;
  for (int64_t c = 0; c < p.c; ++c) mean += widen(row[c]);
  mean /= double(p.c);
  const int64_t panels = ceil_div(p.c, NR), h = i / p.d, d = i % p.d;
  for (int64_t c = 0; c < panels * NR; ++c) {
    const float x = c < p.c ? float(widen(row[c]) - mean) : 0.0f;
    heads.wide[((h * panels + c / NR) * p.d + d) * NR + c % NR] = x;
    if (c < p.c) heads.scaled[(i / MR * p.c + c) * MR + i % MR] = x * value<T>(p.norm_weight, c, 1);
  }
}

template <typename T>
void pack_norm_bias(const HeadAblation& p, const Heads& heads) {
  for (int64_t i = p.h * p.d; i < round_up(heads.rows, MR); ++i)
    for (int64_t c = 0; c < p.c; ++c)
      heads.scaled[(i / MR * p.c + c) * MR + i % MR] = i == p.h * p.d ? value<T>(p.norm_bias, c, 0) : 0.0f;
}

// What a row tile needs in all columns: centred, z and deviation.
template <typename T>
void prepare_tile(const HeadAblation& p, const Heads& heads, const Block& block, int64_t tile, float* x) {
  const int64_t width = round_up(p.c, NR), row = tile * MR;
  for (int64_t i = 0; i < MR * width; ++i) x[i] = 0;
  for (int r = 0; r < MR; ++r) {
    const bool in_use = row + r < block.rows;
    const T* from = static_cast<const T*>(p.resid) + (block.first + row + r) * p.c;
    double mean = 0;
    for (int64_t c = 0; in_use && c < p.c; ++c) mean += widen(from[c]);
    mean /= double(p.c);
    for (int64_t c = 0; c < p.c; ++c) {
      if (in_use) x[r * width + c] = float(widen(from[c]) - mean);
      block.centred[(tile * p.c + c) * MR + r] = x[r * width + c] * value<T>(p.norm_weight, c, 1);
    }
  }
  for (int64_t h = 0; h <= p.h; ++h) {
    vf squares[MR] = {};
    float* z = h > 0 ? block.z + (tile * p.h + h - 1) * p.d * MR : nullptr;
    if (h > 0)
      pack_rows(static_cast<const T*>(p.z) + ((h - 1) * p.n + block.first + row) * p.d, block.rows - row, p.d, z,
                [](int) { return true; });
    for (int64_t i = 0; i < width / NR; ++i) {
      Tile removed{};
      if (h > 0) multiply(z, heads.wide + ((h - 1) * (width / NR) + i) * p.d * NR, p.d, removed);
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) {
          const vf left = load(x + r * width + i * NR + v * W) - removed.at[r][v];
          squares[r] += left * left;
        }
    }
    for (int r = 0; r < MR; ++r)
      block.deviation[h * block.size + row + r] = 1 / sqrtf(sum_of_lanes(squares[r]) / float(p.c) + p.eps);
  }
}

// Panels [first, first + count) of W, and what the heads and the norm's bias write to them.
template <typename T>
void prepare_group(const HeadAblation& p, const Heads& heads, int64_t first, int64_t count, const Own& own) {
  const Weight<T> weight{static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), p.c, p.v};
  const int64_t padded = round_up(heads.rows, MR);
  for (int64_t i = 0; i < count; ++i) {
    float* offsets = own.offsets + i * NR;
    float* products = own.products + i * padded * NR;
    weight.pack(first + i, own.panels + i * p.c * NR, offsets);
    for (int64_t row = 0; row < padded; row += MR) {
      Tile product;
      multiply(heads.scaled + row * p.c, own.panels + i * p.c * NR, p.c, product);
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) store(products + (row + r) * NR + v * W, product.at[r][v]);
    }
    for (int64_t j = 0; p.norm_bias && j < NR; ++j) offsets[j] += products[p.h * p.d * NR + j];
  }
}

void fold(const HeadAblation& p, const Block& block, int64_t h, int64_t strip, int64_t row, bool begins, int64_t first,
          int64_t count, const float* logits /* [MR][kGroupPanels * NR] */) {
  for (int r = 0; r < MR; ++r, logits += Columns::kGroupPanels * NR) {
    block.partial[h].add(strip, row + r, max_and_sum(logits, count), begins);
    if (row + r >= block.rows) continue;
    const int64_t target = p.targets[block.first + row + r] - first * NR;
    if (target >= 0 && target < count * NR) block.at_target[h * block.size + row + r] = logits[target];
  }
}

template <typename T>
void run_strip(const HeadAblation& p, const Columns& columns, const Heads& heads, const Block& block, int64_t strip,
               int64_t tile_begin, int64_t tile_end, const Own& own) {
  alignas(64) float base[MR][Columns::kGroupPanels * NR];  // not yet divided by the deviation
  alignas(64) float logits[MR][Columns::kGroupPanels * NR];
  const int64_t padded = round_up(heads.rows, MR);
  const int64_t begin = strip * columns.strip, end = min(begin + columns.strip, columns.panels);
  for (int64_t first = begin; first < end; first += columns.group) {
    const int64_t count = min(columns.group, end - first);
    prepare_group<T>(p, heads, first, count, own);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile)
      for (int64_t h = 0; h <= p.h; ++h) {
        const float* deviation = block.deviation + h * block.size + tile * MR;
        for (int64_t i = 0; i < count; ++i) {
          Tile product;
          if (h == 0) {
            multiply(block.centred + tile * p.c * MR, own.panels + i * p.c * NR, p.c, product);
            for (int r = 0; r < MR; ++r)
              for (int v = 0; v < NV; ++v) store(base[r] + i * NR + v * W, product.at[r][v]);
          } else {
            multiply(block.z + (tile * p.h + h - 1) * p.d * MR, own.products + (i * padded + (h - 1) * p.d) * NR, p.d,
                     product);
            for (int r = 0; r < MR; ++r)
              for (int v = 0; v < NV; ++v) product.at[r][v] = load(base[r] + i * NR + v * W) - product.at[r][v];
          }
          for (int r = 0; r < MR; ++r)
            for (int v = 0; v < NV; ++v)
              store(logits[r] + i * NR + v * W,
                    product.at[r][v] * splat(deviation[r]) + load(own.offsets + i * NR + v * W));
        }
        fold(p, block, h, strip, tile * MR, first == begin, first, count, logits[0]);
      }
  }
}

void finish(const HeadAblation& p, const Columns& columns, const Block& block, int64_t h, int64_t row) {
  vf peak, sum;
  block.partial[h].merge(columns.strips, row, peak, sum);
  float* out = (h == 0 ? p.base : p.losses + (h - 1) * p.n) + block.first + row;
  const float* at_target = block.at_target + h * block.size + row;
  for (int64_t i = 0; i < min(W, block.rows - row); ++i) out[i] = logf(sum[i]) - (at_target[i] - peak[i]);
}

template <typename T>
void forward(const HeadAblation& p) {
  const int64_t variants = p.h + 1, padded = round_up(p.h * p.d + 1, MR), width = round_up(p.c, NR);
  const Columns columns(p.v, p.c + padded, 64);
  const int64_t per_row = p.c + p.h * p.d + 2 * variants * (columns.strips + 1);
  const int64_t size = min(round_up(p.n, W), round_up(clamp(kRowFloats / per_row, 256, 8192), W));
  const int threads = p.num_threads;
  const int64_t parts = clamp(ceil_div(4 * threads, columns.strips), 1, ceil_div(size, 64 * MR));
  Heads heads{nullptr, nullptr, p.h * p.d + 1};
  Block block{};
  Own all{};  // every thread's, one after the other
  float *max, *sum;
  const int64_t panel_floats = columns.group * p.c * NR, product_floats = columns.group * padded * NR;
  const Scratch scratch([&](Cutter& cutter) {
    heads.wide = cutter.take(p.h * p.d * width);
    heads.scaled = cutter.take(padded * p.c);
    block.centred = cutter.take(size * p.c);
    block.z = cutter.take(size * p.h * p.d);
    block.deviation = cutter.take(variants * size);
    block.at_target = cutter.take(variants * size);
    max = cutter.take(variants * columns.strips * size);
    sum = cutter.take(variants * columns.strips * size);
    block.partial = reinterpret_cast<Partial*>(cutter.take(variants * int64_t(sizeof(Partial)) / 4 + 1));
    all.panels = cutter.take(threads * panel_floats);
    all.products = cutter.take(threads * product_floats);
    all.offsets = cutter.take(threads * columns.group * NR);
    all.x = cutter.take(threads * MR * width);
  });
  for (int64_t h = 0; h < variants; ++h)
    block.partial[h] = {max + h * columns.strips * size, sum + h * columns.strips * size, size};
  block.size = size;

#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = thread_number();
    const Own own{all.panels + thread * panel_floats, all.products + thread * product_floats,
                  all.offsets + thread * columns.group * NR, all.x + thread * MR * width};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.h * p.d; ++i) pack_head_row<T>(p, i, heads);
#pragma omp single
    pack_norm_bias<T>(p, heads);
    for (int64_t first = 0; first < p.n; first += size) {
      Block here = block;
      here.first = first;
      here.rows = min(size, p.n - first);
      const int64_t tiles = ceil_div(here.rows, MR);
#pragma omp for schedule(dynamic, 4)
      for (int64_t tile = 0; tile < tiles; ++tile) prepare_tile<T>(p, heads, here, tile, own.x);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < columns.strips * parts; ++task) {
        const int64_t part = task % parts;
        run_strip<T>(p, columns, heads, here, task / parts, tiles * part / parts, tiles * (part + 1) / parts, own);
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t h = 0; h < variants; ++h)
        for (int64_t row = 0; row < here.rows; row += W) finish(p, columns, here, h, row);
    }
  }
}

}  // namespace

void head_ablation_cross_entropy(const HeadAblation& p) {
  if (p.n == 0) return;
  if (p.dtype == Dtype::kBFloat16) {
    forward<uint16_t>(p);
  } else {
    forward<float>(p);
  }
}

}  // namespace icl::ICL_ISA
