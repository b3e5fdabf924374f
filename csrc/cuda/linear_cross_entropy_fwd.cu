// linear_cross_entropy forward: losses, peak and log_sum of hidden weight^T + bias, of which nothing is ever written.
//
// A block takes a tile of rows and walks over its share of the vocabulary's tiles. Each thread keeps the largest logit
// and the sum of exponentials of its own columns of each of its rows, online; only at the block's end are they merged
// across threads, and by a second kernel across the blocks of a row.
//
// Roofline: 2 N V C operations on (N + V) C numbers. Blocks that run together share their tiles of the weight, so that
// it comes from memory about once: from N = 2048 rows on the product in bf16 takes 10 times as long as that. The
// exponentials, 16 a cycle, take 64 / C of the product's time at sm_80's 1024 multiply-adds a cycle, and run while
// another block multiplies.
#include "cuda/logits_tile.h"
#include "cuda/sm90_launchers.h"

namespace icl {
namespace {

// Adds the logits of one of the thread's rows to what it has found in that row.
template <typename G>
__device__ __forceinline__ void fold(const typename G::Tile& logits, int i, int half, MaxSum& found) {
  const float top = fmaxf(found.max, largest_of<G>(logits, i, half)), reference = reference_of(top);
  // of this tile first: many small numbers added to a large one would lose digits
  const float sum = sum_of_exp<G>(logits, i, half, reference);
  if (top != found.max) found.sum *= fast_exp(found.max - reference);  // rare once a few tiles have been seen
  found.max = top;
  found.sum += sum;
}

template <typename G>
__global__ void __launch_bounds__(G::kThreads, G::kResident)
    forward_kernel(LinearCrossEntropyFwd p, Operand<typename G::Type> hidden, Operand<typename G::Type> weight,
                   Partials partials, unsigned row_tiles, int64_t tiles_per_split) {
  using T = typename G::Type;
  ICL_DYNAMIC_SHARED(memory);
  MaxSum* merged = reinterpret_cast<MaxSum*>(memory + G::kShared);        // [warps side by side][kM]
  int64_t* targets = reinterpret_cast<int64_t*>(merged + G::kAcross * G::kM);  // [kM], -1: none
  const int64_t first_row = int64_t{blockIdx.x % row_tiles} * G::kM, split = blockIdx.x / row_tiles;
  const int64_t first_column = split * tiles_per_split * G::kN;
  const int count = static_cast<int>(min(tiles_per_split, ceil_div(p.v - first_column, G::kN)));
  const T* bias = static_cast<const T*>(p.bias);

  for (int i = threadIdx.x; i < G::kM; i += G::kThreads) {
    const int64_t n = first_row + i;
    targets[i] = n < p.n && p.targets[n] != p.ignore_index ? p.targets[n] : -1;
  }  // visible to all from the first barrier of the product

  MaxSum found[G::kRowBlocks][2];
  const Operand<T> a = hidden.template from_row<false>(first_row);
  G::run(
      reinterpret_cast<T*>(memory), count,
      [&](int tile) {
        return Product<T>{a, weight.template from_row<false>(first_column + int64_t{tile} * G::kN), int(p.c)};
      },
      [&](int tile, typename G::Tile& logits) {
        const int64_t column = first_column + int64_t{tile} * G::kN;
        add_bias<G>(logits, bias ? bias + column : nullptr, within_tile<G::kN>(p.v - column));
#pragma unroll
        for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = G::row(i, half);
            at_column<G>(logits, i, half, targets[row] - column,
                         [&](float logit) { partials.at_target[first_row + row] = logit; });
            fold<G>(logits, i, half, found[i][half]);
          }
      });

#pragma unroll
  for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const MaxSum of_warp = merge_with_lane(merge_with_lane(found[i][half], 1), 2);
      if (threadIdx.x % 4 == 0) merged[threadIdx.x / 32 % G::kAcross * G::kM + G::row(i, half)] = of_warp;
    }
  __syncthreads();  // a row's columns are spread over warps
  if (threadIdx.x < G::kM && first_row + threadIdx.x < p.n) {
    MaxSum total = merged[threadIdx.x];
#pragma unroll
    for (int i = 1; i < G::kAcross; ++i) total = merge(total, merged[i * G::kM + threadIdx.x]);
    partials.found[split * p.n + first_row + threadIdx.x] = total;
  }
}

struct Finish {
  LinearCrossEntropyFwd p;
  const float* at_target;  // [N]

  __device__ void operator()(int64_t row, MaxSum found) const {
    const bool ignored = p.targets[row] == p.ignore_index;
    const float log_sum = logf(found.sum);
    p.peak[row] = ignored ? 0.0f : found.max;
    p.log_sum[row] = ignored ? 0.0f : log_sum;
    p.losses[row] = ignored ? 0.0f : log_sum - (at_target[row] - found.max);
  }
};

template <typename T>
using LargeTile = Gemm<T, ICL_LOSS_ROWS, ICL_LOSS_COLUMNS, ICL_LOSS_WARPS_DOWN, ICL_LOSS_WARPS_ACROSS>;

// f(G{}) with the G whose tiles suit the sizes.
template <typename F>
auto with_tile(const LinearCrossEntropyFwd& p, F f) {
  return with_type(p.dtype, [&](auto x) {
    using T = decltype(x);
    return prefers_small_tiles(p.n, p.v) ? f(SmallGemm<T>{}) : f(LargeTile<T>{});
  });
}

ColumnSplits splits_of(const LinearCrossEntropyFwd& p) {
  return with_tile(p, [&]<typename G>(G) { return ColumnSplits(p.v, G::kN, ceil_div(p.n, G::kM)); });
}

template <typename G>
cudaError_t launch_forward(const LinearCrossEntropyFwd& p, const Partials& partials, cudaStream_t stream) {
  using T = typename G::Type;
  const int64_t row_tiles = ceil_div(p.n, G::kM);
  const size_t shared = G::kShared + G::kM * (G::kAcross * sizeof(MaxSum) + sizeof(int64_t));
  return launch(forward_kernel<G>, row_tiles * partials.splits, G::kThreads, shared, stream, p,
                operand<T>(p.hidden, p.c, p.n), operand<T>(p.weight, p.c, p.v), partials, unsigned(row_tiles),
                splits_of(p).per_split);
}

}  // namespace

cudaError_t finish_linear_cross_entropy(const LinearCrossEntropyFwd& p, const Partials& partials, cudaStream_t stream) {
  return launch_combine(partials, Finish{p, partials.at_target}, stream);
}

size_t linear_cross_entropy_fwd_workspace(const LinearCrossEntropyFwd& p, int arch) {
  if (p.n == 0) return 0;
  if (runs_on_sm90(p, arch, linear_cross_entropy_fwd_sm90_fits))
    return linear_cross_entropy_fwd_sm90_workspace(p);
  Workspace workspace(nullptr);
  Partials(workspace, p.n, splits_of(p).splits);
  return workspace.size();
}

cudaError_t launch_linear_cross_entropy_fwd(const LinearCrossEntropyFwd& p, void* memory, int arch,
                                            cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  if (runs_on_sm90(p, arch, linear_cross_entropy_fwd_sm90_fits))
    return launch_linear_cross_entropy_fwd_sm90(p, memory, stream);
  if (p.c > kMaxDepth) return cudaErrorInvalidValue;
  Workspace workspace(memory);
  const Partials partials(workspace, p.n, splits_of(p).splits);
  const cudaError_t status = with_tile(p, [&]<typename G>(G) { return launch_forward<G>(p, partials, stream); });
  return status == cudaSuccess ? finish_linear_cross_entropy(p, partials, stream) : status;
}

}  // namespace icl
