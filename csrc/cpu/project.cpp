// project: out = x W^T, or out += x W^T: the products of the ablation engine. On an AMD EPYC with AVX-512 the BLAS of
// torch runs at half this rate.
//
// A task packs panels of the weight into its second-level cache and runs its row tiles against them. x is read as it
// lies: a line of a row serves 16 steps of the sum. Long sums are cut so that several panels fit the cache at a time.
#include <cstdint>
#include <cstring>

#include "cpu/gemm_packed.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
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

}  // namespace

void project(const Project& p) {
  if (p.n == 0 || p.m == 0 || p.c == 0) return;
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

}  // namespace icl::ICL_ISA
