// head_ablation_cross_entropy: the losses with each head of the last attention layer removed, at low rank.
//
// With xc the centred residual stream, O the rows of W_O^h centred, g and b the norm's gain and bias, and W the
// unembedding, the logits without head h are
//     ((xc g) W^T - z_h ((O g) W^T)) / sd_h + b W^T + bias,    sd_h^2 = mean((xc - z_h O)^2) + eps.
// First the rows: xc g, O g, both in the op's type, and b W^T + bias and every sd_h in float32. xc g is divided by the
// power of two below sd: that keeps it within float16 and is taken back exactly, so that nothing is lost when a head
// wrote most of the stream. Nor is it in sd_h, summed from the differences and not from var - 2 cov + z G z^T.
// Then, a chunk of the vocabulary at a time: M = W (O g)^T, [chunk, H D]; and the main kernel, whose blocks keep a tile
// of the first product in registers while every head adds its product of depth D, scales, and folds the logits into its
// largest and sum. These are carried from tile to tile in the workspace, in the layout of Partials.
//
// Roofline: 2 N V (C + H D) operations and N V (H + 1) exponentials; at D = 64 a tile's exponentials (16 a cycle) take
// as long as a head's product on the tensor cores of sm_80. So two small blocks share a multiprocessor, one multiplying
// while the other exponentiates; M is read from the second-level cache.
#include "cuda/linear_cross_entropy.h"

namespace icl {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // of M, for every multiprocessor: its share of the second-level cache
constexpr int kWarps = 8;                    // of the kernels that take a row a warp

// What is known about rows before their logits.
struct Rows {
  float* power;         // [N], of two: what the first factor is divided by
  float* inverse;       // [H + 1, N], 1 / sd; row 0 is the base
  float* mean;          // [N], of the stream
  float* mean_removed;  // [H, N], of what a head wrote
  float* head_means;    // [H, D], of the rows of W_O
  float* offsets;       // [V], b W^T + bias
};

// The factors of the products, rows aligned and with zeros between.
template <typename T>
struct Factors {
  T* stream;  // [N][c], xc g / power
  T* heads;   // [H][d][c], O g
  T* m;       // [columns of a chunk][H][d]
  int64_t c, d;
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kFullWarp, x, mask);
  return x;
}

__device__ __forceinline__ int64_t row_of_warp() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; }

// In two parts: the mean of a row far from zero, rounded, would be off by much of what the row spreads.
struct Mean {
  float rounded, rest;

  template <typename T>
  __device__ __forceinline__ Mean(const T* row /* [count] */, int64_t count) {
    float sum = 0, left = 0;
    for (int64_t i = threadIdx.x % 32; i < count; i += 32) sum += to_float(row[i]);
    rounded = warp_sum(sum) / float(count);
    for (int64_t i = threadIdx.x % 32; i < count; i += 32) left += to_float(row[i]) - rounded;
    rest = warp_sum(left) / float(count);
  }

  __device__ __forceinline__ float centre(float x) const { return x - rounded - rest; }
};

// A row of W_O a warp: centred, with the gain.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) heads_kernel(HeadAblation p, Rows rows, Factors<T> factors) {
  const int64_t row = row_of_warp(), h = row / factors.d, d = row % factors.d;
  if (h >= p.h) return;
  const int lane = threadIdx.x % 32;
  const T* gain = static_cast<const T*>(p.norm_weight);
  T* to = factors.heads + row * factors.c;
  if (d >= p.d) {
    for (int64_t c = lane; c < factors.c; c += 32) to[c] = from_float<T>(0);
    return;
  }
  const T* from = static_cast<const T*>(p.w_o) + (h * p.d + d) * p.c;
  const Mean mean(from, p.c);
  if (lane == 0) rows.head_means[h * p.d + d] = mean.rounded + mean.rest;
  for (int64_t c = lane; c < factors.c; c += 32)
    to[c] = from_float<T>(c < p.c ? mean.centre(to_float(from[c])) * (gain ? to_float(gain[c]) : 1.0f) : 0.0f);
}

// A row of the residual stream a warp.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) rows_kernel(HeadAblation p, Rows rows, Factors<T> factors) {
  const int64_t n = row_of_warp();
  if (n >= p.n) return;
  const int lane = threadIdx.x % 32;
  const T* from = static_cast<const T*>(p.resid) + n * p.c;
  const T* gain = static_cast<const T*>(p.norm_weight);
  const Mean mean(from, p.c);
  float squares = 0;
  for (int64_t c = lane; c < p.c; c += 32) {
    const float x = mean.centre(to_float(from[c]));
    squares += x * x;
  }
  const float deviation = sqrtf(warp_sum(squares) / float(p.c) + p.eps);
  const int exponent = deviation > 0 && deviation < INFINITY ? min(max(ilogbf(deviation), -100), 100) : 0;
  const float down = ldexpf(1.0f, -exponent);
  if (lane == 0) {
    rows.power[n] = ldexpf(1.0f, exponent);
    rows.inverse[n] = 1 / deviation;
    rows.mean[n] = mean.rounded;
  }
  for (int64_t c = lane; c < factors.c; c += 32) {
    const float x = c < p.c ? mean.centre(to_float(from[c])) * down * (gain ? to_float(gain[c]) : 1.0f) : 0.0f;
    factors.stream[n * factors.c + c] = from_float<T>(x);
  }
  for (int64_t h = 0; h < p.h; ++h) {
    const T* z = static_cast<const T*>(p.z) + (h * p.n + n) * p.d;
    float removed = 0;
    for (int64_t d = lane; d < p.d; d += 32) removed += to_float(z[d]) * rows.head_means[h * p.d + d];
    removed = warp_sum(removed);
    if (lane == 0) rows.mean_removed[h * p.n + n] = removed;
  }
}

// A row of the unembedding a warp: what every stream's logits have in common.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) offsets_kernel(HeadAblation p, Rows rows) {
  const int64_t v = row_of_warp();
  if (v >= p.v) return;
  const T* weight = static_cast<const T*>(p.weight) + v * p.c;
  const T* shift = static_cast<const T*>(p.norm_bias);
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; shift && c < p.c; c += 32) sum += to_float(shift[c]) * to_float(weight[c]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) rows.offsets[v] = sum + (p.bias ? to_float(static_cast<const T*>(p.bias)[v]) : 0.0f);
}

// A row belongs to one warp here, so nothing is exchanged between warps.
template <typename T>
using DeviationGemm = Gemm<T, 64, 64, 4, 1, false, true>;

// A tile of rows and a head a block, all columns of z_h W_O^h.
template <typename T>
__global__ void __launch_bounds__(DeviationGemm<T>::kThreads, 2) deviation_kernel(HeadAblation p, Rows rows) {
  using G = DeviationGemm<T>;
  ICL_DYNAMIC_SHARED(memory);
  const int64_t h = blockIdx.x % p.h, first_row = blockIdx.x / p.h * G::kM;
  const T* resid = static_cast<const T*>(p.resid);
  const T* z = static_cast<const T*>(p.z) + h * p.n * p.d;
  const T* w_o = static_cast<const T*>(p.w_o) + h * p.d * p.c;
  const Product<T> whole{{z, p.d, p.n, vectors_fit(z, p.d)}, {w_o, p.c, p.c, vectors_fit(w_o, p.c)}, int(p.d)};
  float mean[2] = {}, mean_removed[2] = {}, squares[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t n = first_row + G::row(0, half);
    if (n >= p.n) continue;
    mean[half] = rows.mean[n];
    mean_removed[half] = rows.mean_removed[h * p.n + n];
  }
  G::run(
      reinterpret_cast<T*>(memory), int(ceil_div<int64_t>(p.c, G::kN)),
      [&](int tile) {
        return Product<T>{whole.a.template from_row<false>(first_row),
                          whole.b.template from_row<true>(int64_t{tile} * G::kN), whole.depth};
      },
      [&](int tile, typename G::Tile& removed) {
        const int64_t column = int64_t{tile} * G::kN;
        const int height = within_tile<G::kM>(p.n - first_row), width = within_tile<G::kN>(p.c - column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = G::row(0, half);
          const T* from = resid + (first_row + row) * p.c + column;
          float sum = 0;
#pragma unroll
          for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              if (row >= height || G::column(j) + e >= width) continue;
              const float centred = to_float(from[G::column(j) + e]) - mean[half];
              const float left = centred - (removed[0][j][2 * half + e] - mean_removed[half]);
              sum += left * left;
            }
          squares[half] += sum;
        }
      });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = squares[half];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    const int64_t n = first_row + G::row(0, half);
    if (n >= p.n || threadIdx.x % 4 != 0) continue;
    rows.inverse[(h + 1) * p.n + n] = 1 / sqrtf(sum / float(p.c) + p.eps);
  }
}

// The epilogue of W (O g)^T.
template <typename T>
struct StoreM {
  T* m;  // [rows][columns]
  int64_t rows, columns;

  template <typename G>
  __device__ __forceinline__ void operator()(G, int64_t row, int64_t column, typename G::Tile& tile) const {
    store_tile<G>(tile, m + row * columns + column, columns, within_tile<G::kM>(rows - row),
                  within_tile<G::kN>(columns - column), true);
  }
};

// Two sets of 64 accumulators; again a row belongs to one warp.
template <typename T>
using MainGemm = Gemm<T, 128, 64, 4, 1>;

struct Columns {  // of a chunk
  int64_t first, count, tiles_per_split;
};

// A tile of rows and a share of the chunk's columns a block. Product i of a tile: 0 the base, h + 1 what head h wrote.
template <typename T>
__global__ void __launch_bounds__(MainGemm<T>::kThreads, 2)
    main_kernel(HeadAblation p, Rows rows, Factors<T> factors, Partials partials, Columns columns, unsigned row_tiles) {
  using G = MainGemm<T>;
  static_assert(G::kAcross == 1 && 2 * G::kRowBlocks == 4);  // lane i of four keeps what was found in their row i
  ICL_DYNAMIC_SHARED(memory);
  const int64_t first_row = int64_t{blockIdx.x % row_tiles} * G::kM, split = blockIdx.x / row_tiles;
  const int64_t first_column = split * columns.tiles_per_split * G::kN;
  if (first_column >= columns.count) return;  // a last chunk may be narrow
  const int tiles = int(min(columns.tiles_per_split, ceil_div<int64_t>(columns.count - first_column, G::kN)));
  const int variants = int(p.h) + 1;
  const T* weight = static_cast<const T*>(p.weight) + columns.first * p.c;
  const T* z = static_cast<const T*>(p.z);
  const int64_t m_stride = p.h * factors.d;
  const bool z_fits = vectors_fit(z, p.d), weight_fits = vectors_fit(weight, p.c);

  const auto describe = [&](int i) {
    const int tile = i / variants, h = i % variants - 1;
    const int64_t column = first_column + int64_t{tile} * G::kN;
    if (h < 0) {
      const Operand<T> a{factors.stream, factors.c, p.n, true}, b{weight, p.c, columns.count, weight_fits};
      return Product<T>{a.template from_row<false>(first_row), b.template from_row<false>(column), int(p.c)};
    }
    const Operand<T> a{z + h * p.n * p.d, p.d, p.n, z_fits};
    const Operand<T> b{factors.m + h * factors.d, m_stride, columns.count, true};
    return Product<T>{a.template from_row<false>(first_row), b.template from_row<false>(column), int(p.d)};
  };

  typename G::Tile base;
  float offset[G::kColumnBlocks][2];
  G::run(reinterpret_cast<T*>(memory), tiles * variants, describe, [&](int i, typename G::Tile& logits) {
    const int h = i % variants - 1;
    const int64_t column = first_column + int64_t{i / variants} * G::kN;
    if (h < 0) {
#pragma unroll
      for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t v = column + G::column(j) + e;
          offset[j][e] = v < columns.count ? rows.offsets[columns.first + v] : -INFINITY;
        }
    }
    const int own = threadIdx.x % 4;
    const int64_t own_n = first_row + G::row(own / 2, own % 2);
    MaxSum* total = partials.found + split * partials.rows + (h + 1) * p.n + own_n;
    const bool begins = columns.first == 0 && i < variants;
    const MaxSum before = begins || own_n >= p.n ? MaxSum{} : *total;  // early: it comes from far
    MaxSum found;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int half = r % 2;
      const int64_t n = first_row + G::row(r / 2, half);
      const bool there = n < p.n;
      const float power = there ? rows.power[n] : 1.0f, inverse = there ? rows.inverse[(h + 1) * p.n + n] : 1.0f;
#pragma unroll
      for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float &logit = logits[r / 2][j][2 * half + e], &of_all = base[r / 2][j][2 * half + e];
          if (h < 0) of_all = logit;
          logit = fmaf(fmaf(of_all, power, h < 0 ? 0.0f : -logit), inverse, offset[j][e]);
        }
      float top = largest_of<G>(logits, r / 2, half);
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
      float sum = sum_of_exp<G>(logits, r / 2, half, reference_of(top));
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      if (own == r) found = {top, sum};
      if (there)
        at_column<G>(logits, r / 2, half, p.targets[n] - columns.first - column,
                     [&](float logit) { partials.at_target[(h + 1) * p.n + n] = logit; });
    }
    if (own_n < p.n) *total = merge(before, found);
  });
}

struct Finish {
  HeadAblation p;
  const float* at_target;  // [(H + 1) N]

  __device__ void operator()(int64_t row, MaxSum found) const {
    (row < p.n ? p.base[row] : p.losses[row - p.n]) = logf(found.sum) - (at_target[row] - found.max);
  }
};

// How the workspace is used.
template <typename T>
struct Plan {
  static constexpr int64_t kWide = 16 / sizeof(T);

  Workspace workspace;
  int64_t row_tiles, columns;  // columns: of a chunk
  ColumnSplits splits;         // of its columns
  Factors<T> factors;
  Rows rows;
  Partials partials;

  Plan(const HeadAblation& p, void* memory)
      : workspace(memory), row_tiles(ceil_div<int64_t>(p.n, MainGemm<T>::kM)), columns(columns_of(p)),
        splits(columns, MainGemm<T>::kN, row_tiles), factors(factors_of(p)), rows(rows_of(p)),
        partials(workspace, (p.h + 1) * p.n, splits.splits) {}

 private:
  static int64_t columns_of(const HeadAblation& p) {
    const int64_t row_bytes = std::max<int64_t>(p.h * round_up(p.d, kWide) * int64_t(sizeof(T)), 1);
    const int64_t fitting = kChunkBytes * multiprocessors() / row_bytes;
    return std::min(p.v, std::max<int64_t>(fitting / 128 * 128, 128));
  }

  Factors<T> factors_of(const HeadAblation& p) {
    const int64_t c = round_up(p.c, kWide), d = round_up(p.d, kWide);
    return {workspace.take<T>(p.n * c), workspace.take<T>(p.h * d * c), workspace.take<T>(columns * p.h * d), c, d};
  }

  Rows rows_of(const HeadAblation& p) {
    return {workspace.take<float>(p.n),       workspace.take<float>((p.h + 1) * p.n), workspace.take<float>(p.n),
            workspace.take<float>(p.h * p.n), workspace.take<float>(p.h * p.d),       workspace.take<float>(p.v)};
  }
};

template <typename T>
cudaError_t forward(const HeadAblation& p, void* memory, cudaStream_t stream) {
  const Plan<T> plan(p, memory);
  const Factors<T>& factors = plan.factors;
  const auto rows_by_warps = [&](auto kernel, int64_t rows, const auto&... rest) {
    return launch(kernel, ceil_div<int64_t>(rows, kWarps), 32 * kWarps, 0, stream, p, plan.rows, rest...);
  };
  cudaError_t status = rows_by_warps(heads_kernel<T>, p.h * factors.d, factors);
  if (status == cudaSuccess) status = rows_by_warps(rows_kernel<T>, p.n, factors);
  if (status == cudaSuccess) status = rows_by_warps(offsets_kernel<T>, p.v);
  if (status == cudaSuccess) {
    using G = DeviationGemm<T>;
    status = launch(deviation_kernel<T>, ceil_div<int64_t>(p.n, G::kM) * p.h, G::kThreads, G::kShared, stream, p,
                    plan.rows);
  }
  using G = MainGemm<T>;
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t first = 0; first < p.v && status == cudaSuccess; first += plan.columns) {
    const Columns columns{first, std::min(plan.columns, p.v - first), plan.splits.per_split};
    status = launch_product<T, false, false>(operand<T>(weight + first * p.c, p.c, columns.count),
                                             operand<T>(factors.heads, factors.c, p.h * factors.d), p.c, false,
                                             StoreM<T>{factors.m, columns.count, p.h * factors.d}, stream);
    if (status == cudaSuccess)
      status = launch(main_kernel<T>, plan.row_tiles * plan.splits.splits, G::kThreads, G::kShared, stream, p,
                      plan.rows, factors, plan.partials, columns, unsigned(plan.row_tiles));
  }
  return status == cudaSuccess ? launch_combine(plan.partials, Finish{p, plan.partials.at_target}, stream) : status;
}

}  // namespace

size_t head_ablation_cross_entropy_workspace(const HeadAblation& p, int) {
  if (p.n == 0) return 0;
  return with_type(p.dtype, [&](auto x) { return Plan<decltype(x)>(p, nullptr).workspace.size(); });
}

cudaError_t launch_head_ablation_cross_entropy(const HeadAblation& p, void* workspace, int, cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  if (std::max(p.c, p.d) > kMaxDepth) return cudaErrorInvalidValue;
  return with_type(p.dtype, [&](auto x) { return forward<decltype(x)>(p, workspace, stream); });
}

}  // namespace icl
