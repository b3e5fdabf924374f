// project: out = x W^T, or out += x W^T: the products of the ablation engine. On an AMD EPYC with AVX-512 the BLAS of
// torch runs at half this rate.
//
// In float32 a task packs panels of the weight into its second-level cache and runs its row tiles against them. x is
// read as it lies: a line of a row serves 16 steps of the sum. Long sums are cut so that several panels fit the cache at
// a time.
//
// On a tile kernel of bfloat16 it is the rows that a task keeps in that cache, rounded once, and panels stream by: they
// are packed already, half as large, and each is used by all these rows.
#include <cstdint>
#include <cstring>

#include "cpu/bfloat16_pack.h"
#include "cpu/gemm_packed.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {

void pack_weight(const PackWeight& p);

namespace {

constexpr int64_t kCacheFloats = 384 * 1024 / 4;  // leaves room in 512 KiB for what streams through
constexpr int64_t kDepth = 640;                   // of a sum in one go, at most

struct Panels {
  const float* packed;  // [count][depth][NR]
  int64_t first, count;
};

// out's tile (+)= the product, as far as the matrix goes
ICL_INLINE void keep(const Tile& product, float* out, int64_t step, int64_t rows, int64_t columns, bool add) {
  if (rows == MR && columns >= NR) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        float* to = out + r * step + v * W;
        store(to, add ? load(to) + product.at[r][v] : product.at[r][v]);
      }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    float row[NR];
    std::memcpy(row, product.at[r], sizeof row);
    float* to = out + r * step;
    for (int64_t j = 0; j < min(columns, NR); ++j) to[j] = add ? to[j] + row[j] : row[j];
  }
}

// A row tile against some panels. `x` [MR] rows, x_step apart.
ICL_INLINE void run_tile(const float* x, int64_t x_step, int64_t depth, const Panels& panels, int64_t rows, float* out,
                         int64_t columns, bool add) {
  for (int64_t i = 0; i < panels.count; ++i) {
    const float* panel = panels.packed + i * depth * NR;
    Tile product{};
    for (int64_t k = 0; k < depth; k += kPiece) {
      Tile piece{};
      multiply_add(x + k, x_step, 1, panel + k * NR, NR, min(depth - k, kPiece), piece.at);
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) product.at[r][v] += piece.at[r][v];
    }
    const int64_t column = (panels.first + i) * NR;
    keep(product, out + column, columns, rows, columns - column, add);
  }
}

void in_float32(const Project& p) {
  const int64_t cuts = ceil_div(p.c, kDepth), depth = ceil_div(p.c, cuts);
  const int64_t panels = ceil_div(p.m, NR), tiles = ceil_div(p.n, MR);
  const int64_t group = min(panels, max(kCacheFloats / (NR * depth), 1)), groups = ceil_div(panels, group);
  const int64_t threads = useful_threads(p.num_threads, groups * tiles, p.n * p.m * p.c);
  // several tasks a thread, so that none waits long for the last; packing the panels again is little beside 16 tiles
  const int64_t parts = threads == 1 ? 1 : clamp(ceil_div(8 * threads, groups), 1, ceil_div(tiles, 16));
  float *packed, *edge;
  const Scratch scratch([&](Cutter& cutter) {
    packed = cutter.take(threads * group * depth * NR);
    edge = cutter.take(threads * MR * depth);
  });
#pragma omp parallel num_threads(int(threads))
  {
    float* own = packed + thread_number() * group * depth * NR;
    float* last_rows = edge + thread_number() * MR * depth;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < groups * parts; ++task) {
      const int64_t first = task / parts * group, part = task % parts;
      const Panels here{own, first, min(group, panels - first)};
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int64_t begin = cut * depth, length = min(depth, p.c - begin);
        for (int64_t i = 0; i < here.count; ++i) {
          const int64_t column = (first + i) * NR;
          pack_panel(p.weight + column * p.c + begin, p.c, min(NR, p.m - column), length, own + i * length * NR);
        }
        for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile) {
          const int64_t row = tile * MR, rows = min(MR, p.n - row);
          const float* x = p.x + row * p.c + begin;
          int64_t step = p.c;
          if (rows < MR) {
            std::memset(last_rows, 0, size_t(MR * length) * sizeof(float));
            for (int64_t r = 0; r < rows; ++r) std::memcpy(last_rows + r * length, x + r * p.c, size_t(length) * 4);
            x = last_rows, step = length;
          }
          run_tile(x, step, length, here, rows, p.out + row * p.m, p.m, p.add || cut > 0);
        }
      }
    }
  }
}

constexpr int64_t kRows = 192, kPairs = 512;  // in a cache at a time: rounded rows, and how much of their sums

// out [rows][kPanelColumns] (+)= the product, as far as the matrix goes
void keep(const float* product, float* out, int64_t step, int64_t rows, int64_t columns, bool add) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) {
      const float found = product[r * kPanelColumns + j];
      out[r * step + j] = add ? out[r * step + j] + found : found;
    }
}

void on_tiles(const Project& p, const Bfloat16Tile& tile) {
  const int64_t depth = padded_depth(p.c), cuts = ceil_div(depth, kPairs);
  const int64_t cut = round_up(ceil_div(depth, cuts), kDepthStep), panels = ceil_div(p.m, kPanelColumns);
  const int64_t blocks = ceil_div(p.n, kRows), rows = min(kRows, p.n);
  const int64_t threads = useful_threads(p.num_threads, blocks * panels, p.n * p.m * p.c);
  // several tasks a thread, of eight panels or more: each rounds its rows
  const int64_t parts = threads == 1 ? 1 : clamp(ceil_div(8 * threads, blocks), 1, ceil_div(panels, 8));
  uint16_t *packed, *rounded;
  float* edge;
  const Scratch scratch([&](Cutter& cutter) {
    packed = reinterpret_cast<uint16_t*>(cutter.take(p.packed ? 0 : panels * depth * kPanelColumns / 2));
    rounded = reinterpret_cast<uint16_t*>(cutter.take(threads * rows * cut / 2));
    edge = cutter.take(threads * rows * kPanelColumns);
  });
  if (!p.packed) pack_weight({packed, p.weight, p.m, p.c, p.num_threads});
  const uint16_t* weight = p.packed ? p.packed : packed;
#pragma omp parallel num_threads(int(threads))
  {
    uint16_t* own = rounded + thread_number() * rows * cut;
    float* product = edge + thread_number() * rows * kPanelColumns;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < blocks * parts; ++task) {
      const int64_t first = task / parts * kRows, part = task % parts, here = min(kRows, p.n - first);
      for (int64_t begin = 0; begin < depth; begin += cut) {
        const int64_t length = min(cut, depth - begin);
        for (int64_t r = 0; r < here; ++r)
          narrow_row(p.x + (first + r) * p.c + begin, min(length, p.c - begin), own + r * length);
        for (int64_t i = panels * part / parts; i < panels * (part + 1) / parts; ++i) {
          const uint16_t* panel = weight + (i * depth + begin) * kPanelColumns;
          const int64_t column = i * kPanelColumns, columns = min(kPanelColumns, p.m - column);
          float* out = p.out + first * p.m + column;
          const bool add = p.add || begin > 0;
          if (columns == kPanelColumns) {
            tile.multiply(own, length, here, panel, 1, length, out, p.m, add);
          } else {
            tile.multiply(own, length, here, panel, 1, length, product, kPanelColumns, false);
            keep(product, out, p.m, here, columns, add);
          }
        }
      }
    }
  }
}

void round_all(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(narrow(from[i]));
}

// What tiles give, without them
void of_rounded(Project p) {
  float *x, *weight;
  const Scratch scratch([&](Cutter& cutter) {
    x = cutter.take(p.n * p.c);
    weight = cutter.take(p.m * p.c);
  });
  round_all(p.x, p.n * p.c, x);
  round_all(p.weight, p.m * p.c, weight);
  p.x = x, p.weight = weight;
  in_float32(p);
}

}  // namespace

void project(const Project& p) {
  if (p.n == 0 || p.m == 0 || p.c == 0) return;
  if (p.products == Dtype::kFloat32) return in_float32(p);
  const Bfloat16Tile* tile = bfloat16_tile();
  if (tile) {
    on_tiles(p, *tile);
  } else {
    of_rounded(p);
  }
}

}  // namespace icl::ICL_ISA
