// head_ablation_cross_entropy: the losses with each head of the last attention layer removed, at low rank.
//
// With x the residual stream, O = W_O^h, both less their rows' means, g and b the norm's gain and bias, W the
// unembedding and G = W g, the logits without head h are
//     (x G^T - z_h (O G^T)) / sd_h + b W^T + bias,    sd_h^2 = mean((x - z_h O)^2) + eps.
// Where a head wrote most of the stream the two products are large beside their difference. So both multiply the same
// rounded G: its rounding counts relative to the difference. And in bfloat16 and float16 neither x nor O is rounded:
// they are multiplied as they are, and mean times row sum of G is taken off in float32. Only M = O G^T is rounded.
// sd_h is summed from the differences and not from var - 2 cov + z G z^T, for the same reason.
//
// First come the sd_h. Then, a chunk of the vocabulary at a time: G; M, [chunk, H D]; and the main kernel, whose blocks
// keep a tile of the first product in registers while every head adds its product of depth D, scales, and folds the
// logits into its largest and sum. These are carried from tile to tile in the workspace, in the layout of Partials.
//
// Roofline: 2 N V (C + H D) operations and N V (H + 1) exponentials; at D = 64 a tile's exponentials (16 a cycle) take
// as long as a head's product on the tensor cores of sm_80. So two small blocks share a multiprocessor, one multiplying
// while the other exponentiates; G and M are read from the second-level cache.
#include "cuda/head_ablation.h"
#include "cuda/logits_tile.h"
#include "cuda/sm90_launchers.h"

namespace icl {
namespace {

// of G and M, for every multiprocessor: its share of the last-level cache
constexpr int64_t kChunkBytes = ICL_HEADS_CHUNK_KIB * 1024;
constexpr int kWarps = 8;  // of the kernels that take a row a warp

// float32 is centred before it is multiplied, which costs it less than subtracting products of what is far from zero.
template <typename T>
constexpr bool kCentredBefore = sizeof(T) == 4;

__device__ __forceinline__ int64_t row_of_warp() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; }

// In two parts: the mean of a row far from zero, rounded, would be off by much of what the row spreads.
struct Mean {
  float rounded, rest;

  template <typename T>
  __device__ __forceinline__ Mean(const T* row /* [count] */, int64_t count) {
    float sum = 0, left = 0;
    for (int64_t i = threadIdx.x % 32; i < count; i += 32) sum += to_float(row[i]);
    rounded = sum_lanes(sum) / float(count);
    for (int64_t i = threadIdx.x % 32; i < count; i += 32) left += to_float(row[i]) - rounded;
    rest = sum_lanes(left) / float(count);
  }

  __device__ __forceinline__ float centre(float x) const { return x - rounded - rest; }
};

// A row of W_O or of the stream, as the factor it will be.
template <typename T>
__device__ __forceinline__ void copy_row(const T* from /* [count] */, int64_t count, const Mean& mean,
                                         T* to /* [padded] */, int64_t padded) {
  for (int64_t c = threadIdx.x % 32; c < padded; c += 32) {
    T x = c < count ? from[c] : from_float<T>(0);
    if constexpr (kCentredBefore<T>) x = c < count ? mean.centre(x) : 0;
    to[c] = x;
  }
}

// A row of W_O a warp.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) heads_kernel(HeadAblation p, Sides sides, Factors<T> factors) {
  const int64_t row = row_of_warp(), h = row / factors.d, d = row % factors.d;
  if (h >= p.h) return;
  const int64_t count = d < p.d ? p.c : 0;  // none of the padding
  const T* from = static_cast<const T*>(p.w_o) + (count ? (h * p.d + d) * p.c : 0);
  const Mean mean(from, count);
  if (threadIdx.x % 32 == 0) sides.head_means[row] = count ? mean.rounded + mean.rest : 0.0f;
  copy_row(from, count, mean, factors.heads + row * factors.c, factors.c);
}

// A row of the stream a warp.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps) rows_kernel(HeadAblation p, Sides sides, Factors<T> factors) {
  const int64_t n = row_of_warp();
  if (n >= p.n) return;
  const int lane = threadIdx.x % 32;
  const T* from = static_cast<const T*>(p.resid) + n * p.c;
  const Mean mean(from, p.c);
  copy_row(from, p.c, mean, factors.stream + n * factors.c, factors.c);
  float squares = 0;
  for (int64_t c = lane; c < p.c; c += 32) {
    const float x = mean.centre(to_float(from[c]));
    squares += x * x;
  }
  squares = sum_lanes(squares);
  if (lane == 0) {
    sides.mean[n] = mean.rounded + mean.rest;
    sides.inverse[n] = 1 / sqrtf(squares / float(p.c) + p.eps);
  }
  for (int64_t h = 0; h < p.h; ++h) {
    const T* z = static_cast<const T*>(p.z) + (h * p.n + n) * p.d;
    float removed = 0;
    for (int64_t d = lane; d < p.d; d += 32) removed += to_float(z[d]) * sides.head_means[h * factors.d + d];
    removed = sum_lanes(removed);
    if (lane == 0) sides.mean_removed[h * p.n + n] = removed;
  }
}

// A row of the unembedding a warp.
template <typename T>
__global__ void __launch_bounds__(32 * kWarps)
    weight_kernel(HeadAblation p, Sides sides, Factors<T> factors, Columns columns) {
  const int64_t column = row_of_warp(), v = columns.first + column;
  if (column >= columns.count) return;
  const T *weight = static_cast<const T*>(p.weight) + v * p.c, *gain = static_cast<const T*>(p.norm_weight);
  const T* shift = static_cast<const T*>(p.norm_bias);
  float sum = 0, offset = 0;
  for (int64_t c = threadIdx.x % 32; c < factors.c; c += 32) {
    const float w = c < p.c ? to_float(weight[c]) : 0.0f;
    const T rounded = from_float<T>(gain && c < p.c ? w * to_float(gain[c]) : w);
    factors.weight[column * factors.c + c] = rounded;
    sum += to_float(rounded);
    if (shift && c < p.c) offset += w * to_float(shift[c]);
  }
  sum = sum_lanes(sum);
  offset = sum_lanes(offset);
  if (threadIdx.x % 32 > 0) return;
  sides.sums[column] = sum;
  sides.offsets[column] = offset + (p.bias ? to_float(static_cast<const T*>(p.bias)[v]) : 0.0f);
}

// A row belongs to one warp here, so nothing is exchanged between warps.
template <typename T>
using DeviationGemm = Gemm<T, 64, 64, 4, 1, false, true>;

// A tile of rows and a head a block, all columns of z_h W_O^h.
template <typename T>
__global__ void __launch_bounds__(DeviationGemm<T>::kThreads, 2) deviation_kernel(HeadAblation p, Sides sides) {
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
    mean[half] = sides.mean[n];
    mean_removed[half] = sides.mean_removed[h * p.n + n];
  }
  G::run(
      reinterpret_cast<T*>(memory), int(ceil_div(p.c, G::kN)),
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
    sides.inverse[(h + 1) * p.n + n] = 1 / sqrtf(sum / float(p.c) + p.eps);
  }
}

// The epilogue of G W_O^T.
template <typename T>
struct StoreM {
  Sides sides;
  T* m;  // [rows][columns]
  int64_t rows, columns;

  template <typename G>
  __device__ __forceinline__ void operator()(G, int64_t m0, int64_t n0, typename G::Tile& tile) const {
    const int height = within_tile<G::kM>(rows - m0), width = within_tile<G::kN>(columns - n0);
    if constexpr (!kCentredBefore<T>) {
#pragma unroll
      for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = G::column(j) + e;
          const float mean = column < width ? sides.head_means[n0 + column] : 0.0f;
#pragma unroll
          for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int row = G::row(i, half);
              if (row < height) tile[i][j][2 * half + e] -= mean * sides.sums[m0 + row];
            }
        }
    }
    store_tile<G>(tile, m + m0 * columns + n0, columns, height, width, true);
  }
};

// Two sets of 64 accumulators; again a row belongs to one warp.
template <typename T>
using MainGemm = Gemm<T, ICL_HEADS_ROWS, ICL_HEADS_COLUMNS, ICL_HEADS_ROWS / 32, 1, false, false, false>;

// A tile of rows and a share of the chunk's columns a block. Product i of a tile: 0 the base, h + 1 what head h wrote.
template <typename T>
__global__ void __launch_bounds__(MainGemm<T>::kThreads, 2)
    main_kernel(HeadAblation p, Sides sides, Factors<T> factors, Partials partials, Columns columns,
                unsigned row_tiles, int64_t tiles_per_split) {
  using G = MainGemm<T>;
  static_assert(G::kAcross == 1 && 2 * G::kRowBlocks == 4);  // lane i of four keeps what was found in their row i
  ICL_DYNAMIC_SHARED(memory);
  const int64_t first_row = int64_t{blockIdx.x % row_tiles} * G::kM, split = blockIdx.x / row_tiles;
  const int64_t first_column = split * tiles_per_split * G::kN;
  if (first_column >= columns.count) return;  // a last chunk may be narrow
  const int tiles = int(min(tiles_per_split, ceil_div(columns.count - first_column, G::kN)));
  const int variants = int(p.h) + 1;
  const T* z = static_cast<const T*>(p.z);
  const int64_t m_stride = p.h * factors.d;
  const bool z_fits = vectors_fit(z, p.d);

  const auto describe = [&](int i) {
    const int tile = i / variants, h = i % variants - 1;
    const int64_t column = first_column + int64_t{tile} * G::kN;
    if (h < 0) {
      const Operand<T> a{factors.stream, factors.c, p.n, true}, b{factors.weight, factors.c, columns.count, true};
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
          const bool inside = v < columns.count;
          offset[j][e] = inside ? sides.offsets[v] : -INFINITY;
          const float sum = !kCentredBefore<T> && inside ? sides.sums[v] : 0.0f;
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int64_t n = first_row + G::row(r / 2, r % 2);
            const float mean = !kCentredBefore<T> && n < p.n ? sides.mean[n] : 0.0f;
            base[r / 2][j][2 * (r % 2) + e] = fmaf(-mean, sum, logits[r / 2][j][2 * (r % 2) + e]);
          }
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
      const bool inside = n < p.n;
      const float inverse = inside ? sides.inverse[(h + 1) * p.n + n] : 1.0f;
#pragma unroll
      for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& logit = logits[r / 2][j][2 * half + e];
          logit = fmaf(base[r / 2][j][2 * half + e] - (h < 0 ? 0.0f : logit), inverse, offset[j][e]);
        }
      float top = largest_of<G>(logits, r / 2, half);
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
      float sum = sum_of_exp<G>(logits, r / 2, half, reference_of(top));
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      if (own == r) found = {top, sum};
      if (inside)
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
  Workspace workspace;
  bool hopper;                 // its own main kernel
  int64_t row_tiles, columns;  // columns: of a chunk
  ColumnSplits splits;         // of its columns, but on Hopper
  Factors<T> factors;
  Sides sides;
  Partials partials;

  Plan(const HeadAblation& p, int arch, void* memory)
      : workspace(memory), hopper(runs_on_sm90(p, arch, head_ablation_cross_entropy_sm90_fits)),
        row_tiles(ceil_div(p.n, MainGemm<T>::kM)), columns(columns_of(p)),
        splits(columns, MainGemm<T>::kN, row_tiles), factors(factors_of(p)), sides(sides_of(p)),
        partials(workspace, (p.h + 1) * p.n,
                 hopper ? head_ablation_cross_entropy_sm90_splits(p, columns) : splits.splits) {}

 private:
  static int64_t columns_of(const HeadAblation& p) {
    const int64_t row = std::max<int64_t>(round_up(p.c, kVectorWidth<T>) + p.h * round_up(p.d, kVectorWidth<T>), 1);
    const int64_t fitting = kChunkBytes * multiprocessors() / (row * int64_t(sizeof(T)));
    return std::min(p.v, std::max<int64_t>(fitting / 128 * 128, 128));
  }

  Factors<T> factors_of(const HeadAblation& p) {
    const int64_t c = round_up(p.c, kVectorWidth<T>), d = round_up(p.d, kVectorWidth<T>);
    return {workspace.take<T>(p.n * c), workspace.take<T>(p.h * d * c), workspace.take<T>(columns * c),
            workspace.take<T>(columns * p.h * d), c, d};
  }

  Sides sides_of(const HeadAblation& p) {
    return {workspace.take<float>(p.n),
            workspace.take<float>(p.h * p.n),
            workspace.take<float>((p.h + 1) * p.n),
            workspace.take<float>(p.h * factors.d),
            workspace.take<float>(columns),
            workspace.take<float>(columns)};
  }
};

template <typename T>
cudaError_t launch_main(const HeadAblation& p, const Plan<T>& plan, const Columns& columns, cudaStream_t stream) {
  using G = MainGemm<T>;
  if constexpr (sizeof(T) == 2)
    if (plan.hopper)
      return launch_head_ablation_chunk_sm90(p, plan.sides, plan.factors, plan.partials, columns, stream);
  return launch(main_kernel<T>, plan.row_tiles * plan.splits.splits, G::kThreads, G::kShared, stream, p, plan.sides,
                plan.factors, plan.partials, columns, unsigned(plan.row_tiles), plan.splits.per_split);
}

template <typename T>
cudaError_t forward(const HeadAblation& p, void* memory, int arch, cudaStream_t stream) {
  const Plan<T> plan(p, arch, memory);
  const Factors<T>& factors = plan.factors;
  const auto rows_by_warps = [&](auto kernel, int64_t rows, const auto&... rest) {
    return launch(kernel, ceil_div(rows, kWarps), 32 * kWarps, 0, stream, p, plan.sides, factors, rest...);
  };
  cudaError_t status = rows_by_warps(heads_kernel<T>, p.h * factors.d);
  if (status == cudaSuccess) status = rows_by_warps(rows_kernel<T>, p.n);
  if (status == cudaSuccess) {
    using G = DeviationGemm<T>;
    status = launch(deviation_kernel<T>, ceil_div(p.n, G::kM) * p.h, G::kThreads, G::kShared, stream, p,
                    plan.sides);
  }
  for (int64_t first = 0; first < p.v && status == cudaSuccess; first += plan.columns) {
    const Columns columns{first, std::min(plan.columns, p.v - first)};
    status = rows_by_warps(weight_kernel<T>, columns.count, columns);
    const StoreM<T> store{plan.sides, factors.m, columns.count, p.h * factors.d};
    if (status == cudaSuccess)
      status = launch_product<T, false, false>(operand<T>(factors.weight, factors.c, columns.count),
                                               operand<T>(factors.heads, factors.c, p.h * factors.d), p.c, false, store,
                                               stream);
    if (status == cudaSuccess) status = launch_main<T>(p, plan, columns, stream);
  }
  return status == cudaSuccess ? launch_combine(plan.partials, Finish{p, plan.partials.at_target}, stream) : status;
}

}  // namespace

size_t head_ablation_cross_entropy_workspace(const HeadAblation& p, int arch) {
  if (p.n == 0) return 0;
  return with_type(p.dtype, [&](auto x) { return Plan<decltype(x)>(p, arch, nullptr).workspace.size(); });
}

cudaError_t launch_head_ablation_cross_entropy(const HeadAblation& p, void* workspace, int arch,
                                               cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  if (std::max(p.c, p.d) > kMaxDepth) return cudaErrorInvalidValue;
  return with_type(p.dtype, [&](auto x) { return forward<decltype(x)>(p, workspace, arch, stream); });
}

}  // namespace icl
