// Products of small tiles from shared memory: one interface for tensor cores (bf16, fp16) and plain float32.
//
// A warp multiplies a (16 x kDepth) with b (kDepth x 16) into two blocks of d (16 x 8 each, float32). The accumulators'
// layout is the same for every type, so that a kernel is written once: lane l holds in d[0], d[1] row l/4, columns
// 2 (l%4) and 2 (l%4) + 1, and in d[2], d[3] the same columns of row l/4 + 8.
//
// Tiles in shared memory have 16-byte aligned rows of `pitch` elements; pitch = width + kPad<T> spreads the rows over
// the banks.
#pragma once

#include "cuda/numbers.h"
#include "cuda/warp.h"
#include "hardware/sm80.h"

namespace icl {

template <typename T>
constexpr int kPad = 16 / int(sizeof(T));

// bf16 and fp16, on tensor cores.
template <typename T>
struct Mma {
  static constexpr int kDepth = 16;

  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[4];  // columns 0..7 in the first two, 8..15 in the others
  };

  // Rows m..m+15, depth k..k+kDepth-1 of a tile stored [m][k].
  static __device__ __forceinline__ A load_a(const T* tile, int pitch, int m, int k) {
    const int lane = threadIdx.x % 32;
    A a;
    ldmatrix_x4<false>(a.r, tile + (m + lane % 16) * pitch + k + lane / 16 * 8);
    return a;
  }

  // The same of a tile stored [k][m].
  static __device__ __forceinline__ A load_a_transposed(const T* tile, int pitch, int m, int k) {
    const int lane = threadIdx.x % 32;
    A a;
    ldmatrix_x4<true>(a.r, tile + (k + lane % 8 + lane / 16 * 8) * pitch + m + lane / 8 % 2 * 8);
    return a;
  }

  // Columns n..n+15, depth k..k+kDepth-1 of a tile stored [n][k].
  static __device__ __forceinline__ B load_b(const T* tile, int pitch, int n, int k) {
    const int lane = threadIdx.x % 32;
    B b;
    ldmatrix_x4<false>(b.r, tile + (n + lane % 8 + lane / 16 * 8) * pitch + k + lane / 8 % 2 * 8);
    return b;
  }

  // The same of a tile stored [k][n].
  static __device__ __forceinline__ B load_b_transposed(const T* tile, int pitch, int n, int k) {
    const int lane = threadIdx.x % 32;
    B b;
    ldmatrix_x4<true>(b.r, tile + (k + lane % 16) * pitch + n + lane / 16 * 8);
    return b;
  }

  // Accumulators as the left operand of another product: depth step * kDepth and on of the blocks d[0], d[1], ...
  static __device__ __forceinline__ A from_accumulators(const float (*d)[4], int step) {
    const float(&left)[4] = d[2 * step], (&right)[4] = d[2 * step + 1];
    return {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
            pack<T>(right[2], right[3])};
  }

  static __device__ __forceinline__ void product(float (&left)[4], float (&right)[4], const A& a, const B& b) {
    mma_16816<T>(left, a.r, {b.r[0], b.r[1]});
    mma_16816<T>(right, a.r, {b.r[2], b.r[3]});
  }
};

// Full float32, no tensor cores: every lane multiplies for the four elements of d that it holds.
template <>
struct Mma<float> {
  static constexpr int kDepth = 4;

  struct A {
    float r[2][4];  // [row l/4 and l/4 + 8][k]
  };
  struct B {
    float r[2][2][4];  // [columns 0..7, 8..15][2 (l%4) and the next][k]
  };

  static __device__ __forceinline__ A load_a(const float* tile, int pitch, int m, int k) {
    const int lane = threadIdx.x % 32;
    A a;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 row = *reinterpret_cast<const float4*>(tile + (m + lane / 4 + 8 * i) * pitch + k);
      a.r[i][0] = row.x, a.r[i][1] = row.y, a.r[i][2] = row.z, a.r[i][3] = row.w;
    }
    return a;
  }

  static __device__ __forceinline__ A load_a_transposed(const float* tile, int pitch, int m, int k) {
    const int lane = threadIdx.x % 32;
    A a;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) a.r[i][j] = tile[(k + j) * pitch + m + lane / 4 + 8 * i];
    return a;
  }

  static __device__ __forceinline__ B load_b(const float* tile, int pitch, int n, int k) {
    const int lane = threadIdx.x % 32;
    B b;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 column = *reinterpret_cast<const float4*>(tile + (n + i / 2 * 8 + lane % 4 * 2 + i % 2) * pitch + k);
      float(&to)[4] = b.r[i / 2][i % 2];
      to[0] = column.x, to[1] = column.y, to[2] = column.z, to[3] = column.w;
    }
    return b;
  }

  static __device__ __forceinline__ B load_b_transposed(const float* tile, int pitch, int n, int k) {
    const int lane = threadIdx.x % 32;
    B b;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 pair = *reinterpret_cast<const float2*>(tile + (k + j) * pitch + n + i * 8 + lane % 4 * 2);
        b.r[i][0][j] = pair.x, b.r[i][1][j] = pair.y;
      }
    return b;
  }

  static __device__ __forceinline__ A from_accumulators(const float (*d)[4], int step) {
    const float(&block)[4] = d[step / 2];
    const int lane = threadIdx.x % 32;
    A a;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int holder = (lane & ~3) | (step % 2 * 2 + j / 2);
      a.r[0][j] = __shfl_sync(kFullWarp, block[j % 2], holder);
      a.r[1][j] = __shfl_sync(kFullWarp, block[2 + j % 2], holder);
    }
    return a;
  }

  static __device__ __forceinline__ void product(float (&left)[4], float (&right)[4], const A& a, const B& b) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = fmaf(a.r[i / 2][k], b.r[0][i % 2][k], left[i]);
        right[i] = fmaf(a.r[i / 2][k], b.r[1][i % 2][k], right[i]);
      }
  }
};

}  // namespace icl
