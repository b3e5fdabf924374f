// linear_cross_entropy backward. The logits are computed again, a chunk of the vocabulary at a time, and become their
// gradient g = (softmax - one-hot) * grad_loss, [N, chunk], in the workspace. From it come grad_weight[chunk] =
// g^T hidden, whole, and grad_hidden += g weight[chunk], summed over the chunks in float32.
//
// Three products of 2 N V C operations, all through gemm.h; g is written once and read twice. A chunk is as large as
// the second-level cache can keep, so that this costs no memory bandwidth: the backward is bound by the tensor cores
// as the forward is. Every sum has one owner and one order.
//
// g of a float16 op is scaled by a power of two that brings the largest grad_loss to 2^14, and the results back: small
// probabilities times a mean's 1/N would be lost below 6e-8, and a scaled loss could exceed 65504.
#include "cuda/logits_tile.h"

namespace icl {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // of g, for every multiprocessor: its share of the second-level cache

struct Kept {  // ignored rows count for nothing, whatever they hold
  const int64_t* targets;  // [N]
  int64_t ignore_index;
  __device__ __forceinline__ bool operator()(int row) const { return targets[row] != ignore_index; }
};

struct Scale {
  float up, down;
};

constexpr int kScaleThreads = 256;

__global__ void scale_kernel(LinearCrossEntropyBwd p, Scale* scale /* [1] */) {
  __shared__ float of_warp[kScaleThreads / 32];
  float largest = 0;
  for (int64_t n = threadIdx.x; n < p.n; n += kScaleThreads)
    if (p.targets[n] != p.ignore_index) largest = fmaxf(largest, fabsf(p.grad_losses[n]));
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, mask));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();  // thread 0 reads what the warps have written
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kScaleThreads / 32; ++i) largest = fmaxf(largest, of_warp[i]);
  const bool usable = largest > 0 && largest < INFINITY;
  const int exponent = usable ? min(max(14 - ilogbf(largest), -100), 100) : 0;
  *scale = {ldexpf(1.0f, exponent), ldexpf(1.0f, -exponent)};
}

template <typename T>
struct Chunk {
  T* grad_logits;  // [N][columns], `pitch` apart
  int64_t first, columns, pitch;
  const Scale* scale;  // null: 1
};

// The epilogue of hidden weight^T: logits to gradients.
template <typename T>
struct Differentiate {
  LinearCrossEntropyBwd p;
  Chunk<T> chunk;

  template <typename G>
  __device__ __forceinline__ void operator()(G, int64_t m, int64_t n, typename G::Tile& tile) const {
    const T* bias = static_cast<const T*>(p.bias);
    add_bias<G>(tile, bias ? bias + chunk.first + n : nullptr, within_tile<G::kN>(chunk.columns - n));
    const float scale = chunk.scale ? chunk.scale->up : 1.0f;
#pragma unroll
    for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = m + G::row(i, half);
        const int64_t target = row < p.n ? p.targets[row] : p.ignore_index;
        const bool counts = target != p.ignore_index;
        const float peak = counts ? p.peak[row] : 0, log_sum = counts ? p.log_sum[row] : 0;
        const float grad = counts ? p.grad_losses[row] * scale : 0;
#pragma unroll
        for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = tile[i][j][2 * half + e];
            x = counts ? fast_exp(x - peak - log_sum) * grad : 0.0f;
          }
        // p - 1 at the target, without the cancellation when p is near 1
        if (counts)
          at_column<G>(tile, i, half, target - chunk.first - n, [&](float& x) { x = expm1f(-p.losses[row]) * grad; });
      }
    store_tile<G>(tile, chunk.grad_logits + m * chunk.pitch + n, chunk.pitch, within_tile<G::kM>(p.n - m),
                  within_tile<G::kN>(chunk.columns - n), true);
  }
};

// The epilogue of the other two: writes the product, or adds it to a sum over the chunks.
template <typename T>
struct Store {
  T* out;      // [rows][columns], or null: the sum goes on
  float* sum;  // [rows][columns], of the chunks so far and where there are more to come
  bool adds;   // to what is in `sum`
  int64_t rows, columns;
  const Scale* scale;

  template <typename G>
  __device__ __forceinline__ void operator()(G, int64_t m, int64_t n, typename G::Tile& tile) const {
    const float scale_back = scale ? scale->down : 1.0f;
    const int height = within_tile<G::kM>(rows - m), width = within_tile<G::kN>(columns - n);
    const int64_t at = m * columns + n;
#pragma unroll
    for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = G::row(i, half);
        const float* before = sum + at + row * columns;
#pragma unroll
        for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = tile[i][j][2 * half + e];
            x *= scale_back;
            if (adds && row < height && G::column(j) + e < width) x += before[G::column(j) + e];
          }
      }
    if (out) {
      store_tile<G>(tile, out + at, columns, height, width, vectors_fit(out, columns));
    } else {
      store_tile<G>(tile, sum + at, columns, height, width, vectors_fit(sum, columns));
    }
  }
};

// grad_bias: column sums of g, in `parts` of the rows first. A block takes 64 columns, a warp every eighth row.
constexpr int kSumColumns = 64, kSumWarps = 8;

template <typename T>
__global__ void __launch_bounds__(32 * kSumWarps)
    column_sums_kernel(Chunk<T> chunk, int64_t rows, int64_t rows_per_part, int64_t parts,
                       float* sums /* [parts][chunk.pitch] */) {
  __shared__ float of_warp[kSumWarps][kSumColumns];
  const int64_t part = blockIdx.x % parts, first_column = blockIdx.x / parts * kSumColumns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t end = min(rows, (part + 1) * rows_per_part);
#pragma unroll
  for (int i = 0; i < kSumColumns; i += 32) {
    const int64_t column = first_column + i + lane;
    float sum = 0;
    for (int64_t row = part * rows_per_part + warp; column < chunk.columns && row < end; row += kSumWarps)
      sum += to_float(chunk.grad_logits[row * chunk.pitch + column]);
    of_warp[warp][i + lane] = sum;
  }
  __syncthreads();  // a column's rows are spread over the warps
  const int64_t column = first_column + threadIdx.x;
  if (threadIdx.x >= kSumColumns || column >= chunk.columns) return;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kSumWarps; ++i) sum += of_warp[i][threadIdx.x];
  sums[part * chunk.pitch + column] = sum;
}

template <typename T>
__global__ void grad_bias_kernel(Chunk<T> chunk, int64_t parts, const float* sums /* [parts][chunk.pitch] */,
                                 T* grad_bias /* [V] */) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= chunk.columns) return;
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part * chunk.pitch + column];
  grad_bias[chunk.first + column] = from_float<T>(sum * (chunk.scale ? chunk.scale->down : 1.0f));
}

// How the workspace is used.
template <typename T>
struct Plan {
  int64_t columns, pitch, parts;  // of a chunk; parts: of the rows, for grad_bias
  T* grad_logits;                 // [N][pitch]
  float* grad_hidden;             // [N][C], where it is summed over several chunks
  float* sums;                    // [parts][pitch]
  Scale* scale;
  size_t size;

  Plan(const LinearCrossEntropyBwd& p, void* memory) {
    const int64_t fitting = kChunkBytes * multiprocessors() / (p.n * int64_t(sizeof(T)));
    columns = std::min(p.v, std::max<int64_t>(fitting / 128 * 128, 128));
    pitch = round_up<int64_t>(columns, 128 / sizeof(T));
    const int64_t across = ceil_div(columns, kSumColumns);
    parts = std::clamp<int64_t>(4 * multiprocessors() / across, 1, ceil_div(p.n, 8 * kSumWarps));
    Workspace workspace(memory);
    grad_logits = workspace.take<T>(p.n * pitch);
    if constexpr (sizeof(T) == 4) {
      grad_hidden = static_cast<float*>(p.grad_hidden);
    } else {
      grad_hidden = workspace.take<float>(p.grad_hidden && columns < p.v ? p.n * p.c : 0);
    }
    sums = workspace.take<float>(p.grad_bias ? parts * pitch : 0);
    scale = std::is_same_v<T, fp16> ? workspace.take<Scale>(1) : nullptr;
    size = workspace.size();
  }
};

template <typename T>
cudaError_t backward(const LinearCrossEntropyBwd& p, void* memory, cudaStream_t stream) {
  const Plan<T> plan(p, memory);
  cudaError_t status = cudaSuccess;
  if (plan.scale) status = launch(scale_kernel, 1, kScaleThreads, 0, stream, p, plan.scale);
  const T* weight = static_cast<const T*>(p.weight);
  const Operand<T> hidden = operand<T>(p.hidden, p.c, p.n);
  const Operand<T> hidden_columns{hidden.data, p.c, p.c, hidden.vectors};
  for (int64_t first = 0; first < p.v && status == cudaSuccess; first += plan.columns) {
    const int64_t columns = std::min(plan.columns, p.v - first);
    const Chunk<T> chunk{plan.grad_logits, first, columns, plan.pitch, plan.scale};
    status = launch_product<T, false, false>(hidden, operand<T>(weight + first * p.c, p.c, columns), p.c, true,
                                             Differentiate<T>{p, chunk}, stream);
    if (p.grad_weight && status == cudaSuccess) {
      T* out = static_cast<T*>(p.grad_weight) + first * p.c;
      status = launch_product<T, true, true>(operand<T>(plan.grad_logits, plan.pitch, columns), hidden_columns,
                                             p.n, false, Store<T>{out, nullptr, false, columns, p.c, plan.scale},
                                             stream, Kept{p.targets, p.ignore_index});
    }
    if (p.grad_hidden && status == cudaSuccess) {
      const bool last = first + columns == p.v && sizeof(T) != 4;  // float32 is summed where it is to be
      T* out = last ? static_cast<T*>(p.grad_hidden) : nullptr;
      status = launch_product<T, false, true>(
          operand<T>(plan.grad_logits, plan.pitch, p.n), operand<T>(weight + first * p.c, p.c, p.c), columns,
          false, Store<T>{out, plan.grad_hidden, first > 0, p.n, p.c, plan.scale}, stream);
    }
    if (p.grad_bias && status == cudaSuccess) {
      const int64_t rows_per_part = ceil_div(p.n, plan.parts), across = ceil_div(columns, kSumColumns);
      status = launch(column_sums_kernel<T>, across * plan.parts, 32 * kSumWarps, 0, stream, chunk, p.n, rows_per_part,
                      plan.parts, plan.sums);
      if (status == cudaSuccess)
        status = launch(grad_bias_kernel<T>, ceil_div(columns, 256), 256, 0, stream, chunk, plan.parts,
                        plan.sums, static_cast<T*>(p.grad_bias));
    }
  }
  return status;
}

}  // namespace

size_t linear_cross_entropy_bwd_workspace(const LinearCrossEntropyBwd& p, int) {
  if (p.n == 0) return 0;
  return with_type(p.dtype, [&](auto x) { return Plan<decltype(x)>(p, nullptr).size; });
}

cudaError_t launch_linear_cross_entropy_bwd(const LinearCrossEntropyBwd& p, void* workspace, int, cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  return with_type(p.dtype, [&](auto x) { return backward<decltype(x)>(p, workspace, stream); });
}

}  // namespace icl
