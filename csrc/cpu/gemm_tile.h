// A register tile of a matrix product, and the packing that feeds it.
//
// A tile is MR rows by NR columns of a @ b, held in MR x NV vector registers while k runs. `a` comes packed as
// [K][MR] (one float of each row side by side, broadcast one by one), `b` as [K][NR]. Rows and columns beyond the
// matrix are packed as zeros, so a tile is always whole.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/simd.h"

namespace icl::ICL_ISA {

#if defined(__AVX512F__)
constexpr int MR = 8, NV = 3;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int MR = 4, NV = 3;  // 12 of 16
#else
constexpr int MR = 4, NV = 2;  // 8 of 16: without fused multiply-add each product needs one more
#endif
constexpr int NR = NV * W;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Tile {
  vf at[MR][NV];
};

// tile += a @ b. Consecutive k are ROW_STEP (in a, between rows) and K_STEP apart; packed a: 1 and MR.
template <int ROW_STEP = 1, int K_STEP = MR>
ICL_INLINE void multiply_add(const float* a, const float* b /* [K][NR] */, int64_t depth, Tile& tile) {
  // a local copy: the compiler keeps it in registers through the loop
  vf c[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) c[r][v] = tile.at[r][v];
  for (int64_t k = 0; k < depth; ++k, a += K_STEP, b += NR) {
    vf x[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) x[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const vf y = splat(a[r * ROW_STEP]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) c[r][v] += y * x[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) tile.at[r][v] = c[r][v];
}

// Products longer than this are summed in pieces: errors grow with the length of a piece more than with their number.
// At 512 they are about 1.5 times torch's, at 128 about the same, for 1% of the speed.
constexpr int64_t kPiece = 128;

// tile = a @ b, both packed
ICL_INLINE void multiply(const float* a /* [K][MR] */, const float* b /* [K][NR] */, int64_t depth, Tile& tile) {
  tile = Tile{};
  multiply_add(a, b, smaller(depth, kPiece), tile);
  for (int64_t k = kPiece; k < depth; k += kPiece) {
    Tile piece{};
    multiply_add(a + k * MR, b + k * NR, smaller(depth - k, kPiece), piece);
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) tile.at[r][v] += piece.at[r][v];
  }
}

template <int... I>
ICL_INLINE vf interleave_low(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & 1 ? W : 0) + I / 2)...);
}

template <int... I>
ICL_INLINE vf interleave_high(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & 1 ? W : 0) + (W + I) / 2)...);
}

// W x W floats in registers, transposed: log2(W) rounds of interleaving row i with row i + W/2
ICL_INLINE void transpose(vf (&rows)[W]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    vf next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + W / 2], lanes);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + W / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

// Rows of a matrix as the columns of a panel for `b`: out[c][j] = rows[j][c], 0 for j >= count.
template <typename T>
void pack_panel(const T* rows /* [count, width] */, int64_t count, int64_t width, float* out /* [width][NR] */) {
  for (int v = 0; v < NV; ++v) {
    const int64_t here = clamp(count - v * W, 0, W);
    const T* from = rows + v * W * width;
    int64_t c = 0;
    for (; c + W <= width; c += W) {
      vf block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = i < here ? load(from + i * width + c) : vf{};
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(out + (c + i) * NR + v * W, block[i]);
    }
    for (; c < width; ++c)
      for (int i = 0; i < W; ++i) out[c * NR + v * W + i] = i < here ? widen(from[i * width + c]) : 0.0f;
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
