// cross_entropy_difference on Hopper, bf16 and fp16; what is computed, and how it ends: cross_entropy_difference.cu.
//
// A block owns kRows = 128 rows and walks over the kColumns = 128 wide column tiles of its split of the vocabulary. Of
// each it computes A + 1 products: the logits l, whose exp(l - m) two consumer warpgroups, 64 rows each, keep in
// registers (64 a thread), and then, into 64 accumulators a thread (wgmma m64n128k16), y of one variant after another,
// which they fold into its D and S'. These are carried from tile to tile in the workspace.
//
// Shared memory is 14 slabs of 128 x 64 numbers, all copied by TMA. Of a tile's weight the first 6 slabs along C are
// kept for all its products; the others come anew with each, interleaved with the slabs of rows, through a ring of 8.
// So that the epilogue of one consumer runs beside the products of the other, they take turns: one begins a product
// when the other has issued kLead steps of its own. Left alone they fall into step, as a tile's weight comes for both.
//
// Roofline: a slab of depth is 2 * 128 * 128 * 64 FLOP, 512 cycles of the tensor cores, for 16 KiB of rows and, beyond
// the kept ones, 16 KiB of weight: 48 bytes a cycle and multiprocessor at C = 768, 32 up to C = 384. Shared memory has
// 128 a cycle: wgmma reads 96, the copies write the rest. y -> exp(y) - 1, exp(y) takes 14 instructions an element: a
// consumer's 64 x 128 take 900 cycles, of the 6144 of both consumers' products at C = 768, 2048 at C = 256.
// All rows of A + 1 products are read again for every column tile: they have to come from L2. So few row tiles run at a
// time, each in many splits.
#include "cuda/loss_change.h"
#include "cuda/pipeline.h"
#include "cuda/slab.h"
#include "cuda/sm90_launchers.h"
#include "cuda/splits.h"

namespace icl {
namespace {

constexpr int kRows = kConsumers * kWgmmaRows, kColumns = 128, kDepth = kSlabColumns;
static_assert(kRows == kColumns);  // so that slabs of rows and of weight are of one size
constexpr int kSlabBytes = kRows * kSlabRowBytes, kSlabs = 14;
constexpr int kStages = ICL_DIFFERENCE_SM90_STAGES, kMostKept = kSlabs - kStages;
constexpr int kLead = ICL_DIFFERENCE_SM90_LEAD;  // in steps
static_assert(kLead + std::max(kLead - kMostKept, 0) <= kStages);  // slabs that the other has not read yet
constexpr int kUnderWay = ICL_DIFFERENCE_SM90_UNDER_WAY;
static_assert(2 * (kUnderWay + 1) <= kStages);  // slabs that are read, and of the next step
using Stream = Pipeline<kStages>;
using Kept = Pipeline<kMostKept>;
using Turns = uint64_t[kConsumers];  // mbarriers, completed when it is this consumer's turn
constexpr int kSharedBytes = kSlabs * kSlabBytes + int(sizeof(Stream) + sizeof(Kept) + sizeof(Turns));
static_assert(kSharedBytes <= kMaxSharedSm90);

// Rows that L2 holds while all column tiles go by.
constexpr int64_t kRowsBytes = int64_t{ICL_DIFFERENCE_SM90_ROWS_MIB} << 20;

struct Shape {
  int n, v, variants, steps, kept, row_tiles, column_tiles, splits;

  explicit Shape(const CrossEntropyDifference& p)
      : n(int(p.n)), v(int(p.v)), variants(int(p.a)), steps(int(ceil_div(p.c, kDepth))),
        kept(std::min(steps, kMostKept)), row_tiles(int(ceil_div(p.n, kRows))),
        column_tiles(int(ceil_div(p.v, kColumns))) {
    const int64_t places = multiprocessors();  // one block each
    const int64_t at_a_time = std::max<int64_t>(kRowsBytes / ((p.a + 1) * steps * kSlabBytes), 1);
    splits = int(best_splits(row_tiles, column_tiles, places, ceil_div(places, at_a_time)));
  }

  __device__ int first_tile(int split) const { return int(int64_t{column_tiles} * split / splits); }
};

struct Shared {
  unsigned char *weights, *stages;  // [kMostKept] slabs, [kStages] slabs
  Kept& kept;
  Stream& stream;
  Turns& turns;

  __device__ explicit Shared(unsigned char* memory)
      : weights(memory), stages(memory + kMostKept * kSlabBytes),
        kept(*reinterpret_cast<Kept*>(memory + kSlabs * kSlabBytes)),
        stream(*reinterpret_cast<Stream*>(memory + kSlabs * kSlabBytes + sizeof(Kept))),
        turns(*reinterpret_cast<Turns*>(memory + kSlabs * kSlabBytes + sizeof(Kept) + sizeof(Stream))) {}
};

__device__ __forceinline__ void produce(const CUtensorMap& hidden_map, const CUtensorMap& removed_map,
                                        const CUtensorMap& weight_map, const Shape& shape, const Shared& shared,
                                        int first_row, int first_tile, int end_tile) {
  Ring<kStages> at;
  Ring<1> tile_of;  // whose parity is the tile's
  for (int tile = first_tile; tile < end_tile; ++tile, tile_of = tile_of.next()) {
    for (int product = 0; product <= shape.variants; ++product) {
      for (int step = 0; step < shape.steps; ++step) {
        if (step >= shape.kept) {
          shared.stream.acquire(at, kSlabBytes);
          tma_load(shared.stages + at.stage * kSlabBytes, weight_map, &shared.stream.full[at.stage], step * kDepth,
                   tile * kColumns);
          at = at.next();
        } else if (product == 0) {
          shared.kept.acquire({step, tile_of.parity}, kSlabBytes);
          tma_load(shared.weights + step * kSlabBytes, weight_map, &shared.kept.full[step], step * kDepth,
                   tile * kColumns);
        }
        shared.stream.acquire(at, kSlabBytes);
        unsigned char* const rows = shared.stages + at.stage * kSlabBytes;
        uint64_t* const full = &shared.stream.full[at.stage];
        if (product == 0)
          tma_load(rows, hidden_map, full, step * kDepth, first_row);
        else
          tma_load(rows, removed_map, full, step * kDepth, first_row, product - 1);
        at = at.next();
      }
    }
  }
}

// What a lane knows of two rows, 8 apart, each over its own columns of a tile: d[4 j + 2 h] and the next, for all j,
// are columns 8 j and 8 j + 1 from its first one on.
struct Base {
  float weights[kColumns / 2];  // exp(logit - the row's largest so far)
  float of_tile[2], scale[2];   // their sum; what earlier sums are to be multiplied with
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  __device__ __forceinline__ void add(const float (&d)[kColumns / 2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = largest[h];
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) top = fmaxf(top, fmaxf(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
      const float reference = reference_of(top);
      of_tile[h] = 0;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          of_tile[h] += weights[4 * j + 2 * h + i] = fast_exp(d[4 * j + 2 * h + i] - reference);
      scale[h] = fast_exp(largest[h] - reference);
      sum[h] = sum[h] * scale[h] + of_tile[h];
      largest[h] = top;
    }
  }

  // What a variant, whose product is d, does to row h; the four lanes of the row get it.
  __device__ __forceinline__ Change change(const float (&d)[kColumns / 2], int h) const {
    float moved = 0, left = 0, most = -INFINITY;  // w s q and w s, of exp(y) = s q + s
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float y = -d[4 * j + 2 * h + i];
        const Exp power(y);
        const float scaled = weights[4 * j + 2 * h + i] * power.s;
        moved = fmaf(scaled, power.q, moved);
        left += scaled;
        most = fmaxf(most, y);
      }
    // where no change is as large as log(2) / 2, `left` is the same sum as of_tile and nothing remains of the two
    return merge_lanes<4>({moved + (left - of_tile[h]), moved + left, most});
  }
};

template <typename T>
__device__ __forceinline__ void consume(const Shape& shape, const int64_t* targets, const T* bias, const Shared& shared,
                                        int first_row, int first_tile, int end_tile, int split, int consumer,
                                        const Parts& parts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = first_row + consumer * kWgmmaRows + warp * 16 + lane / 4;  // and the one 8 below
  int target[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) target[h] = row + 8 * h < shape.n ? int(targets[row + 8 * h]) : -1;
  // Of the four lanes of two rows, the first keeps the first row's changes, the second the other's.
  const int kept_row = row + 8 * (lane % 4);
  const bool keeps = lane % 4 < 2 && kept_row < shape.n;
  Change* const changes = parts.changes + int64_t{split} * shape.variants * shape.n + kept_row;

  Base base;
  float d[kColumns / 2];

  const int lead = min(kLead, shape.steps);
  Ring<1> turn;              // whose parity is the product's
  Ring<kStages> at, before;  // the slab to be read next, and the first that was not given back
  Ring<1> tile_of;
  for (int tile = first_tile; tile < end_tile; ++tile, tile_of = tile_of.next()) {
    const int first_column = tile * kColumns + lane % 4 * 2;
    for (int product = 0; product <= shape.variants; ++product) {
      Change* const total = changes + int64_t{product - 1} * shape.n;
      Change earlier;
      if (product > 0 && tile > first_tile && keeps) earlier = *total;  // now: it comes from far

      const auto release = [&](int step) {
        if (step >= shape.kept) {
          shared.stream.release(before);
          before = before.next();
        } else if (product == shape.variants) {
          shared.kept.release({step, tile_of.parity});
        }
        shared.stream.release(before);
        before = before.next();
      };
      // the second consumer's turn comes with the first one's product, the first one's with the second's product before
      mbarrier_wait(&shared.turns[consumer], consumer == 0 ? turn.parity ^ 1 : turn.parity);
      turn = turn.next();
      for (int step = 0; step < shape.steps; ++step) {
        const unsigned char* weight = shared.weights + step * kSlabBytes;
        if (step >= shape.kept) {
          shared.stream.wait(at);
          weight = shared.stages + at.stage * kSlabBytes;
          at = at.next();
        } else if (product == 0) {
          shared.kept.wait({step, tile_of.parity});
        }
        shared.stream.wait(at);
        const uint64_t rows =
            depth_in_rows(shared.stages + at.stage * kSlabBytes + consumer * kWgmmaRows * kSlabRowBytes);
        const uint64_t columns = depth_in_rows(weight);
        at = at.next();
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDepth / kWgmmaDepth; ++k)
          wgmma<T, kColumns>(d, rows + k * kDepthStepInRows, columns + k * kDepthStepInRows, step > 0 || k > 0);
        wgmma_commit();
        if (step == lead - 1) {
          __syncwarp();  // every lane has seen that it is its turn: the next may come
          if (lane == 0) mbarrier_arrive(&shared.turns[1 - consumer]);
        }
        if (step >= kUnderWay) {  // so many steps' products stay under way; those of the step before have been read
          wgmma_wait<kUnderWay>();
          release(step - kUnderWay);
        }
      }
      wgmma_wait<0>(d);
      for (int step = max(shape.steps - kUnderWay, 0); step < shape.steps; ++step) release(step);

      if (product == 0 && (bias || (tile + 1) * kColumns > shape.v)) {
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
        // a register's number must be known when compiling: look through all of them, in the few tiles with a target
        const int wanted = target[h] - first_column;
        if (__any_sync(kFullWarp, target[h] >= 0 && target[h] / kColumns == tile)) {
          float* const to = product == 0 ? parts.base.at_target : parts.at_target + int64_t{product - 1} * shape.n;
#pragma unroll
          for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              if (wanted == 8 * j + i) to[row + 8 * h] = product == 0 ? d[4 * j + 2 * h + i] : -d[4 * j + 2 * h + i];
        }
      }
      if (product == 0) {
        base.add(d);
        continue;
      }
      const Change first = base.change(d, 0), second = base.change(d, 1);
      const bool upper = lane % 4 == 0;
      if (keeps) *total = merge(earlier.scaled(upper ? base.scale[0] : base.scale[1]), upper ? first : second);
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = sum_lanes<4>(base.sum[h]);
    if (lane % 4 == h && keeps) parts.base.found[int64_t{split} * shape.n + kept_row] = {base.largest[h], sum};
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreadsSm90, 1)
    cross_entropy_difference_kernel(const __grid_constant__ CUtensorMap hidden_map,   // [N, C]
                                    const __grid_constant__ CUtensorMap removed_map,  // [A, N, C]
                                    const __grid_constant__ CUtensorMap weight_map,   // [V, C]
                                    const int64_t* targets,                           // [N]
                                    const T* bias,                                    // [V] or null
                                    Shape shape, Parts parts) {
  ICL_DYNAMIC_SHARED(memory);
  const Shared shared(memory);
  // Splits vary fastest: few row tiles run together.
  const int split = int(blockIdx.x) % shape.splits, first_row = int(blockIdx.x) / shape.splits * kRows;
  const int first_tile = shape.first_tile(split), end_tile = shape.first_tile(split + 1);
  if (threadIdx.x == 0) {
    shared.stream.init(kConsumers * 4);
    for (uint64_t& turn : shared.turns) mbarrier_init(&turn, 4);  // by the other consumer's warps
    shared.kept.init(kConsumers * 4);
  }
  __syncthreads();  // or a thread waits on an mbarrier that is not there yet

  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0)
      produce(hidden_map, removed_map, weight_map, shape, shared, first_row, first_tile, end_tile);
  } else {
    take_registers<kConsumerRegisters>();
    consume<T>(shape, targets, bias, shared, first_row, first_tile, end_tile, split, warpgroup - 1, parts);
  }
}

template <typename T>
cudaError_t launch_typed(const CrossEntropyDifference& p, const Shape& shape, const Parts& parts, cudaStream_t stream) {
  CUtensorMap hidden, removed, weight;
  const int64_t stride = p.c * int64_t(sizeof(T));
  cudaError_t status = make_tensor_map<T, 2>(&hidden, p.hidden, {p.c, p.n}, {stride}, {kDepth, kRows});
  if (status == cudaSuccess)
    status = make_tensor_map<T, 3>(&removed, p.removed, {p.c, p.n, p.a}, {stride, stride * p.n}, {kDepth, kRows, 1});
  if (status == cudaSuccess)
    status = make_tensor_map<T, 2>(&weight, p.weight, {p.c, p.v}, {stride}, {kDepth, kColumns});
  if (status != cudaSuccess) return status;
  return launch(cross_entropy_difference_kernel<T>, int64_t{shape.row_tiles} * shape.splits, kThreadsSm90, kSharedBytes,
                stream, hidden, removed, weight, p.targets, static_cast<const T*>(p.bias), shape, parts);
}

}  // namespace

// TMA takes 16-byte aligned rows, strides below 2^40 bytes and 32-bit coordinates.
bool cross_entropy_difference_sm90_fits(const CrossEntropyDifference& p) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const auto fits = [](int64_t size) { return size > 0 && size < int64_t{1} << 30; };
  return p.dtype != Dtype::kFloat32 && fits(p.a) && fits(p.n) && fits(p.c) && fits(p.v) && p.c % 8 == 0 &&
         p.n < (int64_t{1} << 39) / p.c && aligned(p.hidden) && aligned(p.removed) && aligned(p.weight);
}

size_t cross_entropy_difference_sm90_workspace(const CrossEntropyDifference& p) {
  Workspace workspace(nullptr);
  Parts(workspace, p, Shape(p).splits);
  return workspace.size();
}

cudaError_t launch_cross_entropy_difference_sm90(const CrossEntropyDifference& p, void* memory, cudaStream_t stream) {
  const Shape shape(p);
  Workspace workspace(memory);
  const Parts parts(workspace, p, shape.splits);
  const cudaError_t status = p.dtype == Dtype::kBFloat16 ? launch_typed<bf16>(p, shape, parts, stream)
                                                         : launch_typed<fp16>(p, shape, parts, stream);
  return status == cudaSuccess ? finish_cross_entropy_difference(p, parts, stream) : status;
}

}  // namespace icl
