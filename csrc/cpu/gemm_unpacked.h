// Products of small matrices as they lie in memory: a is read one float at a time by any two strides, b by rows.
//
// Two layouts meet here. "Rows": [row][width], a token a row. "Lanes": [width][columns], kLanes examples side by side,
// so that norms and attention need no sum across a vector, whatever the head width. In both a row of b is contiguous
// and whole vectors long; transposing between them costs a few percent of a product.
#pragma once

#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/integers.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace icl::ICL_ISA {

// The vectors of a tile's row, and how many such rows leave registers for b and for a
#if defined(__AVX512F__)
constexpr int kTileVectors = 6;
constexpr int tile_rows(int vectors) { return vectors < 4 ? 8 : vectors == 4 ? 6 : vectors == 5 ? 5 : 4; }
#elif defined(__AVX2__)
constexpr int kTileVectors = 3;
constexpr int tile_rows(int vectors) { return vectors == 1 ? 8 : vectors == 2 ? 6 : 4; }
#else
constexpr int kTileVectors = 2;
constexpr int tile_rows(int vectors) { return vectors == 1 ? 8 : 4; }
#endif

// The left factor: at[row * row_step + k * k_step]
struct Left {
  const float* at;
  int64_t row_step, k_step;
};

struct Right {
  const float* at;
  int64_t step;  // between rows
};

struct Product {
  float* at;
  int64_t step;
};

template <int R, int V>
ICL_INLINE void multiply_tile(Left a, Right b, Product c, int64_t depth, bool add) {
  vf sums[R][V] = {};
  multiply_add(a.at, a.row_step, a.k_step, b.at, b.step, depth, sums);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      float* out = c.at + r * c.step + v * W;
      store(out, add ? load(out) + sums[r][v] : sums[r][v]);
    }
}

template <int V, int R = tile_rows(V)>
ICL_INLINE void multiply_rest(int64_t rows, Left a, Right b, Product c, int64_t depth, bool add) {
  if (rows == R) {
    multiply_tile<R, V>(a, b, c, depth, add);
  } else if constexpr (R > 1) {
    multiply_rest<V, R - 1>(rows, a, b, c, depth, add);
  }
}

template <int V = kTileVectors>
static void multiply_columns(int64_t vectors, int64_t rows, Left a, Right b, Product c, int64_t depth, bool add) {
  if (vectors < V) {
    if constexpr (V > 1) multiply_columns<V - 1>(vectors, rows, a, b, c, depth, add);
    return;
  }
  constexpr int R = tile_rows(V);
  for (; rows >= R; rows -= R, a.at += R * a.row_step, c.at += R * c.step)
    multiply_tile<R, V>(a, b, c, depth, add);
  multiply_rest<V>(rows, a, b, c, depth, add);
}

// c [rows][columns] = a [rows][depth] @ b [depth][columns], or += with `add`; columns is a multiple of W
static void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, Product c, bool add = false) {
  const int64_t vectors = columns / W, cuts = ceil_div(vectors, kTileVectors);
  for (int64_t cut = 0; cut < cuts; ++cut) {
    const int64_t first = vectors * cut / cuts, here = vectors * (cut + 1) / cuts - first;
    for (int64_t k = 0; k < depth; k += kPiece)
      multiply_columns(here, rows, {a.at + k * a.k_step, a.row_step, a.k_step},
                       {b.at + k * b.step + first * W, b.step}, {c.at + first * W, c.step},
                       min(kPiece, depth - k), add || k > 0);
  }
}

// Rows named one by one as lanes: to[c][i] = from[which[i]][c], count and width multiples of W
static inline void gather_lanes(const float* from, int64_t from_step, const int32_t* which, int64_t count, int64_t width,
                         float* to, int64_t to_step) {
  for (int64_t i = 0; i < count; i += W)
    for (int64_t c = 0; c < width; c += W)
      transpose_block([&](int j) { return load(from + which[i + j] * from_step + c); }, to + c * to_step + i, to_step);
}

}  // namespace icl::ICL_ISA
