// linear_cross_entropy forward on Hopper, bf16 and fp16: for every row of hidden [N, C] the largest logit and the sum
// of exp(logit - largest) over weight [V, C], and the target's logit; no logit reaches memory.
//
// A block owns kRows = 128 rows and walks the kColumns = 256 wide column tiles of its split of the vocabulary. Per step
// of kDepth = 64 along C one thread copies a 128 x 64 tile of hidden and a 256 x 64 tile of weight by TMA into a ring
// of 4 stages of 48 KiB; two consumer warpgroups multiply 64 rows each by wgmma m64n256k16, 128 accumulators a thread,
// and fold the finished tile into (largest, sum) in registers. Every lane keeps a (largest, sum) of its own columns;
// the four lanes of a row meet at the end, the splits in a kernel that is shared with sm_80's.
//
// The consumers depend on each other only through the ring, and one starts a ring's length after the other, so that the
// fold of one (1024 cycles of exp; a tile's products are 4096 at C = 256, 12288 at 768) runs beside the products of the
// other. Hidden is copied again with every column tile rather than kept: that costs a third of the L2 traffic but
// leaves one path and a full ring for any C (at C = 768 the rows alone would fill shared memory).
//
// Roofline: a step is 2 * 128 * 256 * 64 FLOP, 1024 cycles of the tensor cores at full rate, for 48 KiB through L2: 48
// bytes a cycle and multiprocessor. Weight tiles are read by all row tiles at about the same time, so memory sees them
// once; L2, not memory, is what the products wait for if anything.
#include "cuda/logits_tile.h"
#include "cuda/pipeline.h"
#include "cuda/slab.h"
#include "cuda/sm90_launchers.h"
#include "cuda/splits.h"
#include "cuda/tile_product.h"

namespace icl {
namespace {

constexpr int kRows = kConsumers * kWgmmaRows, kColumns = ICL_LOSS_SM90_COLUMNS;
constexpr int kDepth = kSlabColumns, kStages = ICL_LOSS_SM90_STAGES;
constexpr int kHiddenBytes = kRows * kSlabRowBytes, kWeightBytes = kColumns * kSlabRowBytes;
constexpr int kStageBytes = kHiddenBytes + kWeightBytes;
constexpr int kSharedBytes = kStages * kStageBytes + int(sizeof(Pipeline<kStages>));
static_assert(kSharedBytes <= kMaxSharedSm90);

struct Shape {
  int n, v, steps, row_tiles, column_tiles, splits;

  explicit Shape(const LinearCrossEntropyFwd& p)
      : n(int(p.n)), v(int(p.v)), steps(int(ceil_div(p.c, kDepth))),
        row_tiles(int(ceil_div(p.n, kRows))), column_tiles(int(ceil_div(p.v, kColumns))),
        splits(int(best_splits(row_tiles, column_tiles, multiprocessors()))) {}  // one block a multiprocessor

  __device__ int first_tile(int split) const { return int(int64_t{column_tiles} * split / splits); }
};

// The running (largest, sum) of two rows' columns that belong to one lane, in base 2: the exponents are relative to
// `reference`, the rounded product of `largest` and log2(e). As every term uses that same number, its rounding is an
// exact factor, which `found` takes out again: one fused multiply-add and one exp2 an element, at full accuracy.
struct Fold {
  float largest = -INFINITY, reference = -INFINITY, sum = 0, at_target = 0;

  // d[4 j + first], d[4 j + first + 1], for all j: new logits of the row.
  __device__ __forceinline__ void add(const float (&d)[kColumns / 2], int first) {
    float top = largest;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) top = fmaxf(top, fmaxf(d[4 * j + first], d[4 * j + first + 1]));
    const float new_reference = top * kLog2E, base = top == -INFINITY ? 0.0f : new_reference;
    float sums[4] = {0, 0, 0, 0};  // short chains of additions, and short chains of roundings
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        sums[j % 2 * 2 + i] += exp2_approx(fmaf(d[4 * j + first + i], kLog2E, -base));
    sum = sum * exp2_approx(reference - base) + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    largest = top, reference = new_reference;
  }

  __device__ __forceinline__ MaxSum found() const {
    if (largest == -INFINITY) return {largest, sum};
    return {largest, sum * exp2_approx(-fmaf(largest, kLog2E, -reference))};
  }
};

template <typename T>
__device__ __forceinline__ void produce(const CUtensorMap& hidden_map, const CUtensorMap& weight_map,
                                        const Shape& shape, unsigned char* tiles, Pipeline<kStages>& pipeline,
                                        int first_row, int first_tile, int end_tile) {
  Ring<kStages> at;
  for (int tile = first_tile; tile < end_tile; ++tile) {
    for (int step = 0; step < shape.steps; ++step) {
      pipeline.acquire(at, kStageBytes);
      unsigned char* stage = tiles + at.stage * kStageBytes;
      tma_load(stage, hidden_map, &pipeline.full[at.stage], step * kDepth, first_row);
      tma_load(stage + kHiddenBytes, weight_map, &pipeline.full[at.stage], step * kDepth, tile * kColumns);
      at = at.next();
    }
  }
}

template <typename T>
__device__ __forceinline__ void consume(const Shape& shape, const int64_t* targets, const T* bias,
                                        const unsigned char* tiles, Pipeline<kStages>& pipeline, int first_row,
                                        int first_tile, int end_tile, int consumer, MaxSum* found, float* at_target) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int own_row = first_row + consumer * kWgmmaRows + warp * 16 + lane / 4;  // and the one 8 below
  int target[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = own_row + 8 * h;
    const int64_t index = row < shape.n ? targets[row] : -1;
    target[h] = index >= 0 && index < shape.v ? int(index) : -1;
  }
  Fold folds[2];
  float d[kColumns / 2];

  // The second consumer waits until the whole ring was full once: from then on it is that much behind the first.
  if (ICL_LOSS_SM90_STAGGER && consumer == 1) {
    const int steps = min(kStages, (end_tile - first_tile) * shape.steps);
    mbarrier_wait(&pipeline.full[steps - 1], 0);
  }
  Ring<kStages> at;
  for (int tile = first_tile; tile < end_tile; ++tile) {
    multiply_tile<T, kColumns>(d, tiles, kStageBytes, consumer * kWgmmaRows * kSlabRowBytes, kHiddenBytes,
                               shape.steps, pipeline, at);

    const int first_column = tile * kColumns + lane % 4 * 2;
    if (bias || (tile + 1) * kColumns > shape.v) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = first_column + 8 * j + i;
          const float offset = column >= shape.v ? -INFINITY : bias ? to_float(bias[column]) : 0.0f;
          d[4 * j + i] += offset;
          d[4 * j + 2 + i] += offset;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      folds[h].add(d, 2 * h);
      // a register's number must be known when compiling: look through all of them, in the few tiles that have a target
      const int wanted = target[h] - first_column;
      if (__any_sync(kFullWarp, target[h] / kColumns == tile && target[h] >= 0)) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (wanted == 8 * j + i) folds[h].at_target = d[4 * j + 2 * h + i];
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = own_row + 8 * h, column = target[h] % kColumns;
    const MaxSum total = merge_with_lane(merge_with_lane(folds[h].found(), 1), 2);
    if (row >= shape.n) continue;
    if (lane % 4 == 0) found[row] = total;
    const bool here = target[h] >= first_tile * kColumns && target[h] < end_tile * kColumns;
    if (here && column / 2 % 4 == lane % 4) at_target[row] = folds[h].at_target;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreadsSm90, 1)
    linear_cross_entropy_kernel(const __grid_constant__ CUtensorMap hidden_map,  // [N, C]
                                const __grid_constant__ CUtensorMap weight_map,  // [V, C]
                                const int64_t* targets,                          // [N]
                                const T* bias,                                   // [V] or null
                                Shape shape, Partials partials) {
  ICL_DYNAMIC_SHARED(tiles);  // [kStages] of hidden [kRows][kDepth] and weight [kColumns][kDepth]
  auto& pipeline = *reinterpret_cast<Pipeline<kStages>*>(tiles + kStages * kStageBytes);
  // Row tiles vary fastest: blocks that run together read the same weight tiles.
  const int first_row = int(blockIdx.x) % shape.row_tiles * kRows, split = int(blockIdx.x) / shape.row_tiles;
  const int first_tile = shape.first_tile(split), end_tile = shape.first_tile(split + 1);
  if (threadIdx.x == 0) pipeline.init(kConsumers * 4);
  __syncthreads();  // or a thread waits on an mbarrier that is not there yet

  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0)
      produce<T>(hidden_map, weight_map, shape, tiles, pipeline, first_row, first_tile, end_tile);
  } else {
    take_registers<kConsumerRegisters>();
    consume<T>(shape, targets, bias, tiles, pipeline, first_row, first_tile, end_tile, warpgroup - 1,
               partials.found + split * partials.rows, partials.at_target);
  }
}

template <typename T>
cudaError_t launch_typed(const LinearCrossEntropyFwd& p, const Shape& shape, const Partials& partials,
                         cudaStream_t stream) {
  CUtensorMap hidden, weight;
  const int64_t stride = p.c * int64_t(sizeof(T));
  cudaError_t status = make_tensor_map<T, 2>(&hidden, p.hidden, {p.c, p.n}, {stride}, {kDepth, kRows});
  if (status == cudaSuccess)
    status = make_tensor_map<T, 2>(&weight, p.weight, {p.c, p.v}, {stride}, {kDepth, kColumns});
  if (status != cudaSuccess) return status;
  return launch(linear_cross_entropy_kernel<T>, int64_t{shape.row_tiles} * shape.splits, kThreadsSm90, kSharedBytes,
                stream, hidden, weight, p.targets, static_cast<const T*>(p.bias), shape, partials);
}

}  // namespace

// TMA takes 16-byte aligned rows, coordinates are 32-bit numbers.
bool linear_cross_entropy_fwd_sm90_fits(const LinearCrossEntropyFwd& p) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const auto fits = [](int64_t size) { return size > 0 && size < int64_t{1} << 30; };
  return p.dtype != Dtype::kFloat32 && fits(p.n) && fits(p.c) && fits(p.v) && p.c % 8 == 0 && aligned(p.hidden) &&
         aligned(p.weight);
}

size_t linear_cross_entropy_fwd_sm90_workspace(const LinearCrossEntropyFwd& p) {
  Workspace workspace(nullptr);
  Partials(workspace, p.n, Shape(p).splits);
  return workspace.size();
}

cudaError_t launch_linear_cross_entropy_fwd_sm90(const LinearCrossEntropyFwd& p, void* memory, cudaStream_t stream) {
  const Shape shape(p);
  Workspace workspace(memory);
  const Partials partials(workspace, p.n, shape.splits);
  const cudaError_t status = p.dtype == Dtype::kBFloat16 ? launch_typed<bf16>(p, shape, partials, stream)
                                                         : launch_typed<fp16>(p, shape, partials, stream);
  return status == cudaSuccess ? finish_linear_cross_entropy(p, partials, stream) : status;
}

}  // namespace icl
