// What the loss kernels do with a tile of logits: bias, largest, sum of exponentials, one column.
#pragma once

#include "cuda/gemm.h"
#include "cuda/log_sum_exp.h"

namespace icl {

// The forward's workspace holds Partials of its rows, filled by a kernel of sm_80 or of Hopper; this makes losses, peak
// and log_sum of them.
ICL_MAY_LACK cudaError_t finish_linear_cross_entropy(const LinearCrossEntropyFwd& p, const Partials& partials,
                                                     cudaStream_t stream);

// Adds the bias; columns beyond the last one become -inf and so count for nothing.
template <typename G, typename T>
__device__ __forceinline__ void add_bias(typename G::Tile& logits, const T* bias /* [columns] or null */,
                                         int columns) {
  if (!bias && columns >= G::kN) return;
#pragma unroll
  for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = G::column(j) + e;
      const bool inside = column < columns;
      const float offset = inside && bias ? to_float(bias[column]) : 0.0f;
#pragma unroll
      for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& logit = logits[i][j][2 * half + e];
          logit = inside ? logit + offset : -INFINITY;
        }
    }
}

// Of the thread's logits in one of its rows.
template <typename G>
__device__ __forceinline__ float largest_of(const typename G::Tile& logits, int i, int half) {
  float top = -INFINITY;
#pragma unroll
  for (int j = 0; j < G::kColumnBlocks; ++j)
    top = fmaxf(top, fmaxf(logits[i][j][2 * half], logits[i][j][2 * half + 1]));
  return top;
}

template <typename G>
__device__ __forceinline__ float sum_of_exp(const typename G::Tile& logits, int i, int half, float reference) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < G::kColumnBlocks; ++j)
    sum += fast_exp(logits[i][j][2 * half] - reference) + fast_exp(logits[i][j][2 * half + 1] - reference);
  return sum;
}

// Calls f(logit) with the one element of the thread's row that is in this column of the tile, if it is the thread's.
template <typename G, typename F>
__device__ __forceinline__ void at_column(typename G::Tile& logits, int i, int half, int64_t column, F f) {
  if (column < 0 || column >= G::kN) return;  // in nearly all tiles
  const int own = static_cast<int>(column) - G::column(0);
#pragma unroll
  for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (own == 8 * j + e) f(logits[i][j][2 * half + e]);
}

}  // namespace icl
