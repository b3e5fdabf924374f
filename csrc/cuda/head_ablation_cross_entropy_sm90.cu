// The main product of head_ablation_cross_entropy on Hopper, bf16 and fp16; what is computed, and what comes before and
// after: head_ablation_cross_entropy.cu.
//
// A block owns kRows = 128 rows and walks over the kColumns = 128 wide column tiles of its split of a chunk of the
// vocabulary. Of each, two consumer warpgroups, 64 rows each, keep x G^T in registers (64 a thread), and then, into 64
// accumulators a thread (wgmma m64n128k16), compute z_h M_h^T of one head after another, scale the difference to logits
// and fold them into the head's (largest, sum), which are carried from tile to tile in the workspace. One thread copies
// 128 x 64 tiles of both factors by TMA into a ring of stages. One consumer starts a ring's length after the other, so
// that the logits of one are folded beside the products of the other.
//
// Roofline: at D = 64 a head takes 512 cycles of the tensor cores for 128 x 128 logits, each of which takes 6
// instructions after that: 770 cycles. The instructions are the limit; x G^T, 6144 cycles at C = 768, runs beside them.
// All rows are read again for every column tile: so few row tiles run at a time, in many splits, and L2 holds them.
#include "cuda/head_ablation.h"
#include "cuda/pipeline.h"
#include "cuda/slab.h"
#include "cuda/sm90_launchers.h"
#include "cuda/splits.h"
#include "cuda/tile_product.h"

namespace icl {
namespace {

constexpr int kRows = kConsumers * kWgmmaRows, kColumns = 128, kDepth = kSlabColumns;
constexpr int kStages = ICL_HEADS_SM90_STAGES;
constexpr int kRowBytes = kRows * kSlabRowBytes, kColumnBytes = kColumns * kSlabRowBytes;
constexpr int kStageBytes = kRowBytes + kColumnBytes;
constexpr int kSharedBytes = kStages * kStageBytes + int(sizeof(Pipeline<kStages>));
static_assert(kSharedBytes <= kMaxSharedSm90);

// Rows that L2 holds, beside a chunk of G and M.
constexpr int64_t kRowsBytes = int64_t{ICL_HEADS_SM90_ROWS_MIB} << 20;

struct Shape {
  int n, heads, steps, head_steps, row_tiles, column_tiles, splits;

  Shape(const HeadAblation& p, int64_t columns, int64_t splits)
      : n(int(p.n)), heads(int(p.h)), steps(int(ceil_div(p.c, kDepth))), head_steps(int(ceil_div(p.d, kDepth))),
        row_tiles(int(ceil_div(p.n, kRows))), column_tiles(int(ceil_div(columns, kColumns))), splits(int(splits)) {}

  __device__ int first_tile(int split) const { return int(int64_t{column_tiles} * split / splits); }
  __device__ int steps_of(int product) const { return product == 0 ? steps : head_steps; }
};

struct Maps {
  CUtensorMap stream;  // [N, c]
  CUtensorMap weight;  // [columns, c], G
  CUtensorMap z;       // [H, N, d]
  CUtensorMap m;       // [columns, H, d]
};

__device__ __forceinline__ void produce(const Maps& maps, const Shape& shape, unsigned char* tiles,
                                        Pipeline<kStages>& pipeline, int first_row, int first_tile, int end_tile) {
  Ring<kStages> at;
  for (int tile = first_tile; tile < end_tile; ++tile) {
    for (int product = 0; product <= shape.heads; ++product) {
      for (int step = 0; step < shape.steps_of(product); ++step) {
        pipeline.acquire(at, kStageBytes);
        unsigned char* const stage = tiles + at.stage * kStageBytes;
        uint64_t* const full = &pipeline.full[at.stage];
        if (product == 0) {
          tma_load(stage, maps.stream, full, step * kDepth, first_row);
          tma_load(stage + kRowBytes, maps.weight, full, step * kDepth, tile * kColumns);
        } else {
          tma_load(stage, maps.z, full, step * kDepth, first_row, product - 1);
          tma_load(stage + kRowBytes, maps.m, full, step * kDepth, product - 1, tile * kColumns);
        }
        at = at.next();
      }
    }
  }
}

// What the four lanes of a row find in a tile of its logits; d[4 j + 2 h] and the next, for all j, are a lane's.
__device__ __forceinline__ MaxSum fold(const float (&d)[kColumns / 2], int h) {
  float tops[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j)
    tops[j % 2] = fmaxf(tops[j % 2], fmaxf(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]));
  float top = fmaxf(tops[0], tops[1]);
  top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
  top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
  // As every term is relative to the same rounded number, its rounding is a factor, which is taken out at the end.
  const float reference = reference_of(top) * kLog2E;
  float sums[4] = {0, 0, 0, 0};  // short chains of additions, and short chains of roundings
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      sums[j % 2 * 2 + i] += exp2_approx(fmaf(d[4 * j + 2 * h + i], kLog2E, -reference));
  const float sum = sum_lanes<4>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return {top, sum * exp2_approx(-fmaf(reference_of(top), kLog2E, -reference))};
}

template <typename T>
__device__ __forceinline__ void consume(const Shape& shape, const Sides& sides, const int64_t* targets,
                                        const Columns& columns, const unsigned char* tiles,
                                        Pipeline<kStages>& pipeline, int first_row, int first_tile, int end_tile,
                                        int consumer, MaxSum* found, float* at_target) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = first_row + consumer * kWgmmaRows + warp * 16 + lane / 4;  // and the one 8 below
  int target[2];
  float mean[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const bool inside = row + 8 * h < shape.n;
    const int64_t index = inside ? targets[row + 8 * h] - columns.first : -1;
    target[h] = index >= 0 && index < columns.count ? int(index) : -1;
    mean[h] = inside ? sides.mean[row + 8 * h] : 0.0f;
  }
  // Of the four lanes of two rows, the first keeps what is found in the first row, the second what is in the other.
  const int kept_row = row + 8 * (lane % 4);
  const bool keeps = lane % 4 < 2 && kept_row < shape.n;

  float base[kColumns / 2], offsets[kColumns / 4], d[kColumns / 2];
  const auto inverse_of = [&](int product, int h) {
    return row + 8 * h < shape.n ? sides.inverse[int64_t{product} * shape.n + row + 8 * h] : 1.0f;
  };
  float next_inverse[2] = {inverse_of(0, 0), inverse_of(0, 1)};

  // The second consumer waits until the whole ring was full once: from then on it is that much behind the first.
  if (ICL_HEADS_SM90_STAGGER && consumer == 1) {
    const int64_t steps = (shape.steps + int64_t{shape.heads} * shape.head_steps) * (end_tile - first_tile);
    mbarrier_wait(&pipeline.full[min(int64_t{kStages}, steps) - 1], 0);
  }
  Ring<kStages> at;
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int first_column = tile * kColumns + lane % 4 * 2;
    for (int product = 0; product <= shape.heads; ++product) {
      const int64_t first_of_product = int64_t{product} * shape.n;
      MaxSum* const total = found + first_of_product + kept_row;
      // Loads before the product in which, or after which, what they bring is used: it comes from far.
      float inverse[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        inverse[h] = next_inverse[h];
        next_inverse[h] = inverse_of(product < shape.heads ? product + 1 : 0, h);
      }
      MaxSum earlier;
      if (keeps && (columns.first > 0 || tile > first_tile)) earlier = *total;
      if (product == 0) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = first_column + 8 * j + i;
            const bool inside = column < columns.count;
            offsets[2 * j + i] = inside ? sides.offsets[column] : -INFINITY;
            base[4 * j + i] = inside ? sides.sums[column] : 0.0f;  // until the product is there
          }
      }

      multiply_tile<T, kColumns>(d, tiles, kStageBytes, consumer * kWgmmaRows * kSlabRowBytes, kRowBytes,
                                 shape.steps_of(product), pipeline, at);

      if (product == 0) {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float sum = base[4 * j + i];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              base[4 * j + 2 * h + i] = fmaf(-mean[h], sum, d[4 * j + 2 * h + i]);
              d[4 * j + 2 * h + i] = 0;  // what no head takes
            }
          }
      }
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) {
        const int h = i / 2 % 2;
        d[i] = fmaf(base[i] - d[i], inverse[h], offsets[i / 4 * 2 + i % 2]);
      }
      // Of both rows without a branch between: there are so few warps that they must not wait for one at a time.
      const MaxSum first = fold(d, 0), second = fold(d, 1);
      if (keeps) *total = merge(earlier, lane % 4 == 0 ? first : second);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // a register's number must be known when compiling: look through all of them, in the few tiles with a target
        const int wanted = target[h] - first_column;
        if (__any_sync(kFullWarp, target[h] >= 0 && target[h] / kColumns == tile)) {
#pragma unroll
          for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              if (wanted == 8 * j + i) at_target[first_of_product + row + 8 * h] = d[4 * j + 2 * h + i];
        }
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreadsSm90, 1)
    head_ablation_kernel(const __grid_constant__ Maps maps, const int64_t* targets /* [N] */, Shape shape, Sides sides,
                         Columns columns, Partials partials) {
  ICL_DYNAMIC_SHARED(tiles);  // [kStages] of rows [kRows][kDepth] and of columns [kColumns][kDepth]
  auto& pipeline = *reinterpret_cast<Pipeline<kStages>*>(tiles + kStages * kStageBytes);
  // Splits vary fastest: few row tiles run together.
  const int split = int(blockIdx.x) % shape.splits, first_row = int(blockIdx.x) / shape.splits * kRows;
  const int first_tile = shape.first_tile(split), end_tile = shape.first_tile(split + 1);
  if (first_tile == end_tile) return;  // a last chunk may be narrow
  if (threadIdx.x == 0) pipeline.init(kConsumers * 4);
  __syncthreads();  // or a thread waits on an mbarrier that is not there yet

  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(maps, shape, tiles, pipeline, first_row, first_tile, end_tile);
  } else {
    take_registers<kConsumerRegisters>();
    consume<T>(shape, sides, targets, columns, tiles, pipeline, first_row, first_tile, end_tile, warpgroup - 1,
               partials.found + split * partials.rows, partials.at_target);
  }
}

template <typename T>
cudaError_t launch_typed(const HeadAblation& p, const Sides& sides, const Factors<T>& factors, const Partials& partials,
                         const Columns& columns, cudaStream_t stream) {
  const Shape shape(p, columns.count, partials.splits);
  constexpr int64_t kSize = sizeof(T);
  const int64_t c = factors.c, d = factors.d;
  Maps maps;
  cudaError_t status = make_tensor_map<T, 2>(&maps.stream, factors.stream, {c, p.n}, {c * kSize}, {kDepth, kRows});
  if (status == cudaSuccess)
    status =
        make_tensor_map<T, 2>(&maps.weight, factors.weight, {c, columns.count}, {c * kSize}, {kDepth, kColumns});
  if (status == cudaSuccess)
    status = make_tensor_map<T, 3>(&maps.z, p.z, {d, p.n, p.h}, {d * kSize, d * p.n * kSize}, {kDepth, kRows, 1});
  if (status == cudaSuccess)
    status = make_tensor_map<T, 3>(&maps.m, factors.m, {d, p.h, columns.count}, {d * kSize, p.h * d * kSize},
                                   {kDepth, 1, kColumns});
  if (status != cudaSuccess) return status;
  return launch(head_ablation_kernel<T>, int64_t{shape.row_tiles} * shape.splits, kThreadsSm90, kSharedBytes, stream,
                maps, p.targets, shape, sides, columns, partials);
}

}  // namespace

// TMA takes 16-byte aligned rows, strides below 2^40 bytes and 32-bit coordinates.
bool head_ablation_cross_entropy_sm90_fits(const HeadAblation& p) {
  const auto fits = [](int64_t size) { return size > 0 && size < int64_t{1} << 30; };
  return p.dtype != Dtype::kFloat32 && fits(p.n) && fits(p.h) && fits(p.d) && fits(p.c) && fits(p.v) && p.d % 8 == 0 &&
         p.n < (int64_t{1} << 39) / p.d && p.h < (int64_t{1} << 39) / p.d &&
         reinterpret_cast<uintptr_t>(p.z) % 16 == 0;
}

int64_t head_ablation_cross_entropy_sm90_splits(const HeadAblation& p, int64_t columns) {
  const Shape shape(p, columns, 1);
  const int64_t row_tile = int64_t{shape.steps + shape.heads * shape.head_steps} * kRowBytes;
  const int64_t at_a_time = std::max<int64_t>(kRowsBytes / row_tile, 1), places = multiprocessors();
  return best_splits(shape.row_tiles, shape.column_tiles, places, ceil_div(places, at_a_time));
}

cudaError_t launch_head_ablation_chunk_sm90(const HeadAblation& p, const Sides& sides, const Factors<bf16>& factors,
                                            const Partials& partials, const Columns& columns, cudaStream_t stream) {
  return launch_typed<bf16>(p, sides, factors, partials, columns, stream);
}

cudaError_t launch_head_ablation_chunk_sm90(const HeadAblation& p, const Sides& sides, const Factors<fp16>& factors,
                                            const Partials& partials, const Columns& columns, cudaStream_t stream) {
  return launch_typed<fp16>(p, sides, factors, partials, columns, stream);
}

}  // namespace icl
