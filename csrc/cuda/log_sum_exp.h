// The largest of a row of logits and the sum of exp(logit - largest): in a thread, across threads, across blocks.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/launch.h"
#include "cuda/tunables.h"
#include "cuda/warp.h"
#include "hardware/sm80.h"

namespace icl {

// exp(x) for x <= 0, or a rounding above; 0 where float32 has only denormal numbers.
__device__ __forceinline__ float fast_exp(float x) { return exp2_approx(x * kLog2E); }

struct alignas(8) MaxSum {
  float max = -INFINITY;  // -inf: nothing but -inf was seen
  float sum = 0;          // of exp(x - max); a NaN among the x makes it NaN
};

// What exp is taken relative to: -inf - -inf would be NaN.
__device__ __forceinline__ float reference_of(float max) { return max == -INFINITY ? 0.0f : max; }

__device__ __forceinline__ MaxSum merge(MaxSum a, MaxSum b) {
  const float top = fmaxf(a.max, b.max), reference = reference_of(top);
  return {top, a.sum * fast_exp(a.max - reference) + b.sum * fast_exp(b.max - reference)};
}

// With that of the lane whose number differs in the bits of `mask`.
__device__ __forceinline__ MaxSum merge_with_lane(MaxSum own, int mask) {
  return merge(own, {__shfl_xor_sync(kFullWarp, own.max, mask), __shfl_xor_sync(kFullWarp, own.sum, mask)});
}

// What the blocks that share the columns of a row have found, each in its own columns.
struct Partials {
  MaxSum* found;     // [splits][rows]
  float* at_target;  // [rows], the target's logit; not written where there is no target
  int64_t rows, splits;

  Partials(Workspace& workspace, int64_t rows, int64_t splits)
      : found(workspace.take<MaxSum>(splits * rows)), at_target(workspace.take<float>(rows)), rows(rows),
        splits(splits) {}
};

constexpr int kCombineWarps = 8;

// A warp a row. finish(row, merged) by one lane.
template <typename Finish>
__global__ void __launch_bounds__(32 * kCombineWarps) combine_kernel(Partials partials, Finish finish) {
  const int64_t row = int64_t{blockIdx.x} * kCombineWarps + threadIdx.x / 32;
  if (row >= partials.rows) return;
  const int lane = threadIdx.x % 32;
  MaxSum total;
  for (int64_t split = lane; split < partials.splits; split += 32)
    total = merge(total, partials.found[split * partials.rows + row]);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) total = merge_with_lane(total, mask);
  if (lane == 0) finish(row, total);
}

template <typename Finish>
cudaError_t launch_combine(const Partials& partials, const Finish& finish, cudaStream_t stream) {
  return launch(combine_kernel<Finish>, ceil_div(partials.rows, kCombineWarps), 32 * kCombineWarps, 0, stream,
                partials, finish);
}

// How the column tiles of a product are dealt to blocks: whole tiles, neighbours together, the same number to each.
struct ColumnSplits {
  int64_t tiles, per_split, splits;

  // Two rounds of two blocks on every multiprocessor: the last round's idle share is small, and a block still has
  // many tiles over which its start and end are spread.
  ColumnSplits(int64_t columns, int tile, int64_t row_tiles) {
    tiles = ceil_div(columns, tile);
    const int64_t blocks = ICL_SPLIT_BLOCKS * multiprocessors();
    const int64_t wanted = std::clamp<int64_t>(ceil_div(blocks, row_tiles), 1, tiles);
    per_split = ceil_div(tiles, wanted);
    splits = ceil_div(tiles, per_split);
  }
};

}  // namespace icl
