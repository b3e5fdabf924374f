// A register tile of a matrix product, and the packing that feeds it.
//
// A tile is MR rows by NR columns of a @ b, held in MR x NV vector registers while k runs. `a` comes packed as
// [K][MR] (one float of each row side by side, broadcast one by one), `b` as [K][NR]. Rows and columns beyond the
// matrix are packed as zeros, so a tile is always whole.
#pragma once

#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/integers.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace icl::ICL_ISA {

#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int MR = 4, NV = 3;  // 12 of 16
#else
constexpr int MR = 4, NV = 2;  // 8 of 16: without fused multiply-add each product needs one more
#endif
constexpr int NR = NV * W;

struct Tile {
  vf at[MR][NV];
};

// tile = a @ b, both packed
ICL_INLINE void multiply(const float* a /* [K][MR] */, const float* b /* [K][NR] */, int64_t depth, Tile& tile) {
  tile = Tile{};
  multiply_add(a, 1, MR, b, NR, min(depth, kPiece), tile.at);
  for (int64_t k = kPiece; k < depth; k += kPiece) {
    Tile piece{};
    multiply_add(a + k * MR, 1, MR, b + k * NR, NR, min(depth - k, kPiece), piece.at);
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) tile.at[r][v] += piece.at[r][v];
  }
}

// Rows of a matrix, `step` apart, as the columns of a panel for `b`: out[c][j] = rows[j][c], 0 for j >= count.
template <typename T>
void pack_panel(const T* rows /* [count, width] */, int64_t step, int64_t count, int64_t width,
                float* out /* [width][NR] */) {
  for (int v = 0; v < NV; ++v) {
    const int64_t here = clamp(count - v * W, 0, W);
    const T* from = rows + v * W * step;
    int64_t c = 0;
    for (; c + W <= width; c += W)
      transpose_block([&](int i) { return i < here ? load(from + i * step + c) : vf{}; }, out + c * NR + v * W, NR);
    for (; c < width; ++c)
      for (int i = 0; i < W; ++i) out[c * NR + v * W + i] = i < here ? widen(from[i * step + c]) : 0.0f;
  }
}

// Rows of a matrix as the rows of `a`: out[c][r] = rows[r][c], 0 for r >= count and for rows that keep() refuses.
template <typename T, typename Keep>
void pack_rows(const T* rows /* [count, width] */, int64_t count, int64_t width, float* out /* [width][MR] */,
               Keep keep) {
  for (int r = 0; r < MR; ++r) {
    if (r < count && keep(r)) {
      for (int64_t c = 0; c < width; ++c) out[c * MR + r] = widen(rows[r * width + c]);
    } else {
      for (int64_t c = 0; c < width; ++c) out[c * MR + r] = 0;
    }
  }
}

}  // namespace icl::ICL_ISA
