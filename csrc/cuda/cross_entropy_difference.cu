// cross_entropy_difference: token losses, and how much each of A variants changes them, with no difference of losses.
//
// With l = hidden weight^T + bias, m and S the largest l of a row and sum exp(l - m), and y = -removed[a] weight^T:
//     D = sum exp(l - m) (exp(y) - 1),    difference[a] = log1p(D / S) - y_target,
// whose rounding errors are relative to y. Where |D| is more than S / 2 it is log(S' / S) - y_target, with S' = sum
// exp(l - m) exp(y), and where S' is out of range or made of what exp(l - m) has lost, the loss is computed anew.
//
// A block takes a tile of rows and walks over its share of the vocabulary's tiles. Of each it first computes l, and
// keeps exp(l - m) in registers, m being the largest so far; then every variant multiplies its rows with the same tile
// of the weight and folds exp(y) and exp(y) - 1, which come of one evaluation, into its D and S'. These are carried
// from tile to tile in the workspace, like those of head_ablation_cross_entropy. A second kernel merges them across the
// blocks of a row, in a fixed order, and finishes; what it computes anew is streamed without tensor cores, and is meant
// to be rare: y > 40 somewhere, or a change that takes nearly all probability from where it was.
//
// Roofline: 2 N V C (A + 1) operations. A tile of 128 x 128 reads 256 C numbers for 128 x 128 C multiply-adds: 32 bytes
// a cycle and multiprocessor in halves at sm_80's 1024 multiply-adds a cycle, within what the second-level cache
// delivers, where 128 x 64 would ask for 48. exp(l - m) and y take 64 registers each, so 8 warps fill a multiprocessor.
// exp takes 14 instructions an element at 64 a cycle, 0.3 of the product's time at C = 768; the loads of the next
// product's first steps run beside it, its multiplications do not.
#include "cuda/logits_tile.h"
#include "cuda/loss_change.h"
#include "cuda/sm90_launchers.h"

namespace icl {
namespace {

constexpr float kMost = 40;           // a larger change may take exp(l - m) exp(y) out of range
constexpr float kLeastLeft = 1e-25f;  // of S: with less, what exp(l - m) lost when it was rounded to zero may count
constexpr int kFinishRows = 8;        // of a block that finishes: a warp a row

// Adds weight exp(y).
__device__ __forceinline__ void add(Change& found, float weight, float y) {
  const Exp power(y);
  found.grown = fmaf(weight, fmaf(power.s, power.q, power.s - 1), found.grown);
  found.sum = fmaf(weight, fmaf(power.s, power.q, power.s), found.sum);
  found.most = fmaxf(found.most, y);
}

template <typename T>
using MainGemm =
    Gemm<T, ICL_DIFFERENCE_ROWS, ICL_DIFFERENCE_COLUMNS, ICL_DIFFERENCE_ROWS / 32, ICL_DIFFERENCE_WARPS_ACROSS, false,
         false, false>;
template <typename T>
constexpr int kResident = MainGemm<T>::kThreads > 128 ? 1 : 2;

// Product i of a tile of columns: 0 the logits, a + 1 what variant a takes from them.
template <typename T>
__global__ void __launch_bounds__(MainGemm<T>::kThreads, kResident<T>)
    main_kernel(CrossEntropyDifference p, Parts parts, unsigned row_tiles, int64_t tiles_per_split) {
  using G = MainGemm<T>;
  constexpr int kRows = 2 * G::kRowBlocks;  // of a thread
  static_assert(kRows == 4);                // lane i of four keeps what was found in their row i
  ICL_DYNAMIC_SHARED(memory);
  int64_t* targets = reinterpret_cast<int64_t*>(memory + G::kShared);  // [kM], -1: no row
  const int64_t first_row = int64_t{blockIdx.x % row_tiles} * G::kM, split = blockIdx.x / row_tiles;
  const int64_t first_column = split * tiles_per_split * G::kN;
  const int tiles = static_cast<int>(min(tiles_per_split, ceil_div(p.v - first_column, G::kN)));
  const int variants = static_cast<int>(p.a) + 1;
  const T *hidden = static_cast<const T*>(p.hidden), *removed = static_cast<const T*>(p.removed);
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  const bool fits = vectors_fit(hidden, p.c) && vectors_fit(removed, p.c) && vectors_fit(weight, p.c);

  for (int i = threadIdx.x; i < G::kM; i += G::kThreads)
    targets[i] = first_row + i < p.n ? p.targets[first_row + i] : -1;  // visible to all from the first barrier of run

  const int own = threadIdx.x % 4;
  const int64_t own_row = first_row + G::row(own / 2, own % 2);
  const int64_t part = split * G::kAcross + threadIdx.x / 32 % G::kAcross;
  typename G::Tile weights;  // exp(l - top), of every logit
  MaxSum own_base;           // and what both sums of its row are multiplied by when their reference rises:
  float own_scale = 0;

  const auto describe = [&](int i) {
    const int a = i % variants - 1;
    const int64_t column = first_column + int64_t{i / variants} * G::kN;
    const Operand<T> rows{a < 0 ? hidden : removed + a * p.n * p.c, p.c, p.n, fits};
    const Operand<T> columns{weight, p.c, p.v, fits};
    return Product<T>{rows.template from_row<false>(first_row), columns.template from_row<false>(column), int(p.c)};
  };

  G::run(reinterpret_cast<T*>(memory), tiles * variants, describe, [&](int i, typename G::Tile& tile) {
    const int a = i % variants - 1;
    const int64_t column = first_column + int64_t{i / variants} * G::kN;
    if (a < 0) {
      add_bias<G>(tile, bias ? bias + column : nullptr, within_tile<G::kN>(p.v - column));
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int half = r % 2, row = G::row(r / 2, half);
        at_column<G>(tile, r / 2, half, targets[row] - column,
                     [&](float logit) { parts.base.at_target[first_row + row] = logit; });
        float top = fmaxf(own == r ? own_base.max : -INFINITY, largest_of<G>(tile, r / 2, half));
        top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
        const float reference = reference_of(top);
        float sum = 0;
#pragma unroll
        for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            sum += weights[r / 2][j][2 * half + e] = fast_exp(tile[r / 2][j][2 * half + e] - reference);
        sum = sum_lanes<4>(sum);
        if (own == r) {
          own_scale = fast_exp(own_base.max - reference);
          own_base = {top, own_base.sum * own_scale + sum};
        }
      }
      return;
    }
    Change* total = parts.changes + (part * p.a + a) * p.n + own_row;
    const Change before = i < variants || own_row >= p.n ? Change{} : *total;  // early: it comes from far
    Change own_change;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int half = r % 2;
      Change found;
#pragma unroll
      for (int j = 0; j < G::kColumnBlocks; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) add(found, weights[r / 2][j][2 * half + e], -tile[r / 2][j][2 * half + e]);
      found = merge_lanes<4>(found);
      if (own == r) own_change = found;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {  // apart, or nvcc brings all rows' exponentials forward: too many registers
      const int half = r % 2, row = G::row(r / 2, half);
      at_column<G>(tile, r / 2, half, targets[row] - column,
                   [&](float less) { parts.at_target[a * p.n + first_row + row] = -less; });
    }
    if (own_row < p.n) *total = merge(before.scaled(own_scale), own_change);
  });

  if (own_row < p.n) parts.base.found[part * p.n + own_row] = own_base;
}

// A warp a row of one variant. The rows whose sums cannot be used go through the weight again, all of the block's rows
// together: a column is read once for them.
template <typename T>
__global__ void __launch_bounds__(32 * kFinishRows) finish_kernel(CrossEntropyDifference p, Parts parts) {
  constexpr int kColumns = 4;  // of a warp, at a time
  __shared__ MaxSum merged[kFinishRows][kFinishRows];  // [row][warp]
  __shared__ float at_target[kFinishRows];
  const int64_t groups = ceil_div(p.n, kFinishRows), a = blockIdx.x / groups;
  const int64_t first_row = blockIdx.x % groups * kFinishRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool inside = first_row + warp < p.n;
  const int64_t row = inside ? first_row + warp : p.n - 1;

  MaxSum base;
  for (int64_t part = lane; part < parts.base.splits; part += 32)
    base = merge(base, parts.base.found[part * p.n + row]);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) base = merge_with_lane(base, mask);
  const float loss = logf(base.sum) - (parts.base.at_target[row] - base.max);
  if (a == 0 && inside && lane == 0) p.base[row] = loss;
  if (p.a == 0) return;

  Change change;
  for (int64_t part = lane; part < parts.base.splits; part += 32) {
    const float factor = fast_exp(parts.base.found[part * p.n + row].max - reference_of(base.max));
    change = merge(change, parts.changes[(part * p.a + a) * p.n + row].scaled(factor));
  }
  change = merge_lanes<32>(change);
  float* difference = p.difference + a * p.n + row;
  const float least = kLeastLeft * base.sum * expf(fmaxf(change.most, 0));  // what was lost may grow as much as any
  const bool usable = change.most <= kMost && change.sum > least;           // false where there is a NaN
  const bool repeat = inside && !usable;
  if (inside && usable && lane == 0) {
    const float ratio = change.grown / base.sum, y = parts.at_target[a * p.n + row];
    *difference = (fabsf(ratio) <= 0.5f ? log1pf(ratio) : logf(change.sum / base.sum)) - y;
  }
  if (!__syncthreads_or(repeat)) return;

  const T *hidden = static_cast<const T*>(p.hidden), *removed = static_cast<const T*>(p.removed) + a * p.n * p.c;
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  const int64_t target = lane < kFinishRows ? p.targets[min(first_row + lane, p.n - 1)] : -1;
  MaxSum found;  // by the lane, in the row of its number
  for (int64_t first = warp * kColumns; first < p.v; first += kFinishRows * kColumns) {
    float logits[kFinishRows][kColumns] = {};
#pragma unroll 1
    for (int64_t c = lane; c < p.c; c += 32) {
      float w[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) w[j] = to_float(weight[min(first + j, p.v - 1) * p.c + c]);
#pragma unroll
      for (int i = 0; i < kFinishRows; ++i) {
        const int64_t at = min(first_row + i, p.n - 1) * p.c + c;
        const float left = to_float(hidden[at]) - to_float(removed[at]);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) logits[i][j] = fmaf(left, w[j], logits[i][j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      float logit = 0;
#pragma unroll
      for (int i = 0; i < kFinishRows; ++i) {
        const float sum = sum_lanes(logits[i][j]);
        if (lane == i) logit = sum;
      }
      if (first + j >= p.v) continue;
      if (bias) logit += to_float(bias[first + j]);
      found = merge(found, {logit, 1});
      if (first + j == target) at_target[lane] = logit;
    }
  }
  if (lane < kFinishRows) merged[lane][warp] = found;
  __syncthreads();  // the columns of a row are spread over the warps
  MaxSum without = merged[warp][lane % kFinishRows];
#pragma unroll
  for (int mask = kFinishRows / 2; mask > 0; mask /= 2) without = merge_with_lane(without, mask);
  if (repeat && lane == 0) *difference = logf(without.sum) - (at_target[warp] - without.max) - loss;
}

template <typename T>
struct Plan {
  using G = MainGemm<T>;

  Workspace workspace;
  int64_t row_tiles;
  ColumnSplits splits;
  Parts parts;

  Plan(const CrossEntropyDifference& p, void* memory)
      : workspace(memory), row_tiles(ceil_div(p.n, G::kM)), splits(p.v, G::kN, row_tiles),
        parts(workspace, p, splits.splits * G::kAcross) {}
};

template <typename T>
cudaError_t forward(const CrossEntropyDifference& p, void* memory, cudaStream_t stream) {
  using G = MainGemm<T>;
  const Plan<T> plan(p, memory);
  const cudaError_t status =
      launch(main_kernel<T>, plan.row_tiles * plan.splits.splits, G::kThreads, G::kShared + G::kM * sizeof(int64_t),
             stream, p, plan.parts, unsigned(plan.row_tiles), plan.splits.per_split);
  return status == cudaSuccess ? finish_cross_entropy_difference(p, plan.parts, stream) : status;
}

}  // namespace

cudaError_t finish_cross_entropy_difference(const CrossEntropyDifference& p, const Parts& parts, cudaStream_t stream) {
  const int64_t groups = ceil_div(p.n, kFinishRows);
  return with_type(p.dtype, [&](auto x) {
    return launch(finish_kernel<decltype(x)>, groups * std::max<int64_t>(p.a, 1), 32 * kFinishRows, 0, stream, p,
                  parts);
  });
}

size_t cross_entropy_difference_workspace(const CrossEntropyDifference& p, int arch) {
  if (p.n == 0) return 0;
  if (runs_on_sm90(p, arch, cross_entropy_difference_sm90_fits)) return cross_entropy_difference_sm90_workspace(p);
  return with_type(p.dtype, [&](auto x) { return Plan<decltype(x)>(p, nullptr).workspace.size(); });
}

cudaError_t launch_cross_entropy_difference(const CrossEntropyDifference& p, void* workspace, int arch,
                                            cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  if (runs_on_sm90(p, arch, cross_entropy_difference_sm90_fits))
    return launch_cross_entropy_difference_sm90(p, workspace, stream);
  if (p.c > kMaxDepth) return cudaErrorInvalidValue;
  return with_type(p.dtype, [&](auto x) { return forward<decltype(x)>(p, workspace, stream); });
}

}  // namespace icl
