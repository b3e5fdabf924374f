// frozen_attention on Hopper, bf16 and fp16: out[a] = softmax(scale q k^T, causal, windowed) v[a] for all variants a,
// where D is at most 128 and Dv a multiple of 64. With `rows` or an explicit `pattern` the kernel of sm_80 runs. It is
// the forward of smeared_attention too, whose keys are smeared before.
//
// An item of work is 128 query rows of one head and a chunk of up to 4 slabs of the values' columns, a slab being 64
// columns of one variant; so the scores are computed once for 256 columns, whatever variants they belong to. One thread
// copies q once and then, tile by tile of 64 keys, k and the slabs of v by TMA into a ring of 4 stages. Two consumer
// warpgroups take 64 rows each: scores = q k^T by wgmma (m64n64k16), online softmax in registers, out += p v by wgmma
// with p as the register operand and the slabs as the transposed one (m64n256k16: 128 accumulators a thread).
// The scores of the next tile are issued before the product with the present one's values, so that the softmax of the
// former runs beside the latter. Tiles of keys that no row of a consumer sees are not computed, those that no row of
// the item sees not even copied.
//
// Blocks stay: there is one a multiprocessor, and while its consumers finish an item and write it out, the ring fills
// with the next one's tiles. Items come in pairs, the rows with most keys and those with fewest, so that all pairs of
// dense attention are the same work.
//
// Roofline: a tile of keys is 2 * 128 * 64 * (D + 256) FLOP, 1280 cycles of the tensor cores at D = 64, against 8192
// exp (512 cycles) and 40 KiB from L2. Memory: v is read and out written once, about T / 3 FLOP a byte: the tensor
// cores are the limit from T = 1000 on, below that memory is.
#include <algorithm>
#include <cmath>

#include "cuda/launch.h"
#include "cuda/pipeline.h"
#include "cuda/slab.h"
#include "cuda/sm90_launchers.h"
#include "cuda/tunables.h"
#include "cuda/warp.h"
#include "hardware/sm80.h"

namespace icl {
namespace {

constexpr int kRows = kConsumers * kWgmmaRows, kKeys = ICL_FROZEN_SM90_KEYS;
constexpr int kStages = ICL_FROZEN_SM90_STAGES, kMostSlabs = ICL_FROZEN_SM90_SLABS;
static_assert(kStages >= 3);  // a consumer waits for a third tile before it is done with the first
constexpr int kTileBytes = kKeys * kSlabRowBytes;  // of one slab of keys or values

template <int kDepth, int kSlabs>
struct Layout {  // of shared memory
  static constexpr int kQueryBytes = kDepth / kSlabColumns * kRows * kSlabRowBytes;
  static constexpr int kKeyBytes = kDepth / kSlabColumns * kTileBytes;
  static constexpr int kStageBytes = kKeyBytes + kSlabs * kTileBytes;
  static constexpr int kBarriers = kQueryBytes + kStages * kStageBytes;
  static constexpr int kBytes = kBarriers + int(sizeof(Pipeline<kStages>) + sizeof(Pipeline<1>));
  static_assert(kBytes <= kMaxSharedSm90);
};

struct Shape {
  int length, heads, examples_heads, slabs_per_variant, slabs, row_tiles, chunks, width, pairs;
  float scale_log2;  // scale * log2(e)

  Shape(const FrozenAttention& p, int slabs_per_chunk)
      : length(int(p.length)), heads(int(p.heads)), examples_heads(int(p.batch * p.heads)),
        slabs_per_variant(int(p.width / kSlabColumns)), slabs(int(p.variants * slabs_per_variant)),
        row_tiles(ceil_div(length, kRows)), chunks(ceil_div(slabs, slabs_per_chunk)), width(int(p.width)),
        pairs(ceil_div(row_tiles, 2)), scale_log2(p.scale * kLog2E) {}

  __host__ __device__ int64_t pairs_of_items() const { return int64_t{pairs} * chunks * examples_heads; }
};

// Tiles of keys that some of the rows first_row .. first_row + rows - 1 sees, each `window` keys up to its own.
struct KeyTiles {
  int begin, end;

  __device__ KeyTiles(int first_row, int rows, int length, int window) {
    const int end_row = min(first_row + rows, length);
    end = (end_row + kKeys - 1) / kKeys;
    begin = first_row < length ? max(first_row - window + 1, 0) / kKeys : end;
  }
};

struct Item {
  int head, first_row, first_slab, window, length;

  __device__ KeyTiles tiles() const { return KeyTiles(first_row, kRows, length, window); }
};

// This block's items, one after the other. Row tiles vary fastest, then chunks: blocks that run together read the same
// values and keys.
template <int kSlabs, typename Use>
__device__ __forceinline__ void for_each_item(const Shape& shape, const int64_t* windows, Use use) {
  for (int64_t index = blockIdx.x; index < shape.pairs_of_items(); index += gridDim.x) {
    const int pair = int(index % shape.pairs), block = int(index / shape.pairs), head = block / shape.chunks;
    const int64_t asked = windows ? windows[head % shape.heads] : 0;
    const int window = asked > 0 && asked < shape.length ? int(asked) : shape.length + kRows;  // beyond every key
    const int last = shape.row_tiles - 1 - pair;
    for (int row_tile = last;; row_tile = pair) {
      use(Item{head, row_tile * kRows, block % shape.chunks * kSlabs, window, shape.length});
      if (row_tile == pair) break;
    }
  }
}

template <int kDepth, int kSlabs>
__device__ __forceinline__ void produce(const CUtensorMap& q_map, const CUtensorMap& k_map, const CUtensorMap& v_map,
                                        const Shape& shape, const Item& item, unsigned char* memory,
                                        Pipeline<kStages>& pipeline, Pipeline<1>& queries, Ring<kStages>& at,
                                        Ring<1> item_at) {
  using L = Layout<kDepth, kSlabs>;
  const int head = item.head;
  const KeyTiles tiles = item.tiles();
  queries.acquire(item_at, L::kQueryBytes);
#pragma unroll
  for (int i = 0; i < kDepth / kSlabColumns; ++i)
    tma_load(memory + i * kRows * kSlabRowBytes, q_map, &queries.full[0], i * kSlabColumns, item.first_row, head);
  const int first_variant = item.first_slab / shape.slabs_per_variant;
  const int first_column = item.first_slab % shape.slabs_per_variant * kSlabColumns;
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    pipeline.acquire(at, L::kStageBytes);
    unsigned char* stage = memory + L::kQueryBytes + at.stage * L::kStageBytes;
    uint64_t* const full = &pipeline.full[at.stage];
#pragma unroll
    for (int i = 0; i < kDepth / kSlabColumns; ++i)
      tma_load(stage + i * kTileBytes, k_map, full, i * kSlabColumns, tile * kKeys, head);
    int plane = first_variant * shape.examples_heads + head, column = first_column;
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) {  // past the last variant: zeros
      tma_load(stage + L::kKeyBytes + i * kTileBytes, v_map, full, column, tile * kKeys, plane);
      column += kSlabColumns;
      if (column == shape.width) column = 0, plane += shape.examples_heads;
    }
    at = at.next();
  }
}

// What a lane knows of two rows, 8 apart: the largest score (times scale, in base 2) and the sum over its own columns
// of 2^(score - largest). Of a tile's scores it has columns 8 j and 8 j + 1 from its first one on, for all j.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // -inf for keys beyond `until` or, of the row 8 below, `until` + 8, and for the `window`-th before those and earlier.
  // Both in columns from the lane's first.
  static __device__ __forceinline__ void hide(float (&scores)[kKeys / 2], int until, int window) {
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int column = i / 4 * 8 + i % 2, last = until + i / 2 % 2 * 8;
      if (column > last || column <= last - window) scores[i] = -INFINITY;
    }
  }

  // Turns scores into weights relative to the new largest; `shrink`: what those of earlier tiles are to be multiplied
  // with.
  __device__ __forceinline__ void add(float (&scores)[kKeys / 2], float (&shrink)[2]) {
    float top[2] = {largest[0], largest[1]};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(kFullWarp, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(kFullWarp, top[h], 2));
      const float base = top[h] == -INFINITY ? 0.0f : top[h];  // nothing seen yet: -inf - -inf would be NaN
      shrink[h] = exp2_approx(largest[h] - base);
      largest[h] = top[h];
      float sums[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[4 * j + 2 * h + i];
          score = exp2_approx(score - base);
          sums[i] += score;
        }
      sum[h] = sum[h] * shrink[h] + (sums[0] + sums[1]);
    }
  }

  // Over all columns.
  __device__ __forceinline__ float total(int h) const {
    const float pair = sum[h] + __shfl_xor_sync(kFullWarp, sum[h], 1);
    return pair + __shfl_xor_sync(kFullWarp, pair, 2);
  }
};

template <typename T, int kDepth, int kSlabs>
__device__ __forceinline__ void consume(const Shape& shape, const Item& item, T* out, const RowSums& row_sums,
                                        const unsigned char* memory, Pipeline<kStages>& pipeline, Pipeline<1>& queries_ring, Ring<kStages>& at,
                                        Ring<1> item_at, int consumer) {
  using L = Layout<kDepth, kSlabs>;
  constexpr int kColumns = kSlabs * kSlabColumns;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int head = item.head, first_slab = item.first_slab, window = item.window;
  const int first_row = item.first_row + consumer * kWgmmaRows;
  const KeyTiles tiles = item.tiles();
  const int row = first_row + warp * 16 + lane / 4;  // and the one 8 below
  const KeyTiles own(first_row, kWgmmaRows, shape.length, window);
  const uint64_t queries = depth_in_rows(memory + consumer * kWgmmaRows * kSlabRowBytes);
  const unsigned char* stages = memory + L::kQueryBytes;

  float scores[kKeys / 2], sums[kColumns / 2];
  uint32_t weights[kKeys / kWgmmaDepth][4];
  Softmax softmax;
  float shrink[2];

  const auto multiply_keys = [&](int stage) {
    const uint64_t keys = depth_in_rows(stages + stage * L::kStageBytes);
#pragma unroll
    for (int k = 0; k < kDepth / kWgmmaDepth; ++k) {
      constexpr int kPerSlab = kSlabColumns / kWgmmaDepth;
      const int slab = k / kPerSlab, step = k % kPerSlab * int(kDepthStepInRows);
      wgmma<T, kKeys>(scores, queries + (slab * kRows * kSlabRowBytes >> 4) + step,
                      keys + (slab * kTileBytes >> 4) + step, k > 0);
    }
    wgmma_commit();
  };
  const auto multiply_values = [&](int stage, bool accumulate) {
    const uint64_t values = depth_in_columns(stages + stage * L::kStageBytes + L::kKeyBytes, kTileBytes);
#pragma unroll
    for (int k = 0; k < kKeys / kWgmmaDepth; ++k)
      wgmma_register_a<T, kColumns>(sums, weights[k], values + k * kDepthStepInColumns, accumulate || k > 0);
    wgmma_commit();
  };
  const auto add_scores = [&](int tile) {
    const int first_key = tile * kKeys;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) scores[i] *= shape.scale_log2;
    if (first_key + kKeys - 1 > first_row || first_key <= first_row + kWgmmaRows - 1 - window)
      Softmax::hide(scores, row - first_key - lane % 4 * 2, window);
    softmax.add(scores, shrink);
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int k = 0; k < kKeys / kWgmmaDepth; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[k][i] = pack<T>(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
  };

  const auto skip = [&](int begin, int end) {
    for (int tile = begin; tile < end; ++tile) {
      pipeline.wait(at);  // or the release could count for the stage's previous tile, which the other still reads
      pipeline.release(at);
      at = at.next();
    }
  };

  skip(tiles.begin, own.begin);
  queries_ring.wait(item_at);
  if (own.begin == own.end) queries_ring.release(item_at);
  if (own.begin < own.end) {
    pipeline.wait(at);
    wgmma_fence();
    multiply_keys(at.stage);
    wgmma_wait<0>(scores);
    if (own.begin + 1 == own.end) queries_ring.release(item_at);
    add_scores(own.begin);
    pack_weights();
    if (own.begin + 1 < own.end) pipeline.wait(at.next());
    for (int tile = own.begin + 1; tile < own.end; ++tile) {
      const Ring<kStages> next = at.next();
      wgmma_fence();
      multiply_keys(next.stage);
      multiply_values(at.stage, tile > own.begin + 1);
      wgmma_wait<1>(scores);
      if (tile + 1 == own.end) queries_ring.release(item_at);
      add_scores(tile);
      pin(scores);
      // Here already, because it is a loop: ptxas would move the next wait up past the exponentials, and they would no
      // longer run beside the product.
      if (tile + 1 < own.end) pipeline.wait(next.next());
      wgmma_wait<0>(sums);
      if (__any_sync(kFullWarp, shrink[0] != 1 || shrink[1] != 1)) {  // rarely, once a row has seen some keys
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) sums[i] *= shrink[i / 2 % 2];
      }
      pipeline.release(at);
      at = next;
      pack_weights();
    }
    wgmma_fence();
    multiply_values(at.stage, own.end > own.begin + 1);
    wgmma_wait<0>(sums);
    pipeline.release(at);
    at = at.next();
  }
  skip(own.end, tiles.end);
  if (own.begin == own.end) return;

  const float totals[2] = {softmax.total(0), softmax.total(1)}, inverse[2] = {1 / totals[0], 1 / totals[1]};
  if (row_sums.peak && lane % 4 == 0) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (row + 8 * h < shape.length) {
        const int64_t to = int64_t{head} * shape.length + row + 8 * h;
        const float largest = softmax.largest[h], natural = largest * kLn2;
        row_sums.peak[to] = natural;
        row_sums.log_sum[to] = logf(totals[h]) + fmaf(largest, kLn2, -natural) + largest * kLn2Rest;
      }
  }
#pragma unroll
  for (int s = 0; s < kSlabs; ++s) {
    const int slab = first_slab + s, variant = slab / shape.slabs_per_variant;
    if (slab >= shape.slabs) break;
    const int column = slab % shape.slabs_per_variant * kSlabColumns;
    T* const plane = out + (int64_t{variant} * shape.examples_heads + head) * shape.length * shape.width + column;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // 32 columns of a row, of which lane % 4 gets 8: 16 bytes
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* pair = sums + 4 * (8 * s + 4 * half + j) + 2 * h;
          words[j] = pack<T>(pair[0] * inverse[h], pair[1] * inverse[h]);
        }
        transpose(words);
        if (row + 8 * h < shape.length) {
          T* const to = plane + int64_t{row + 8 * h} * shape.width + half * 32 + lane % 4 * 8;
          *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
  }
}

template <typename T, int kDepth, int kSlabs>
__global__ void __launch_bounds__(kThreadsSm90, 1)
    frozen_attention_kernel(const __grid_constant__ CUtensorMap q_map,  // [batch * heads, length, depth]
                            const __grid_constant__ CUtensorMap k_map,  // [batch * heads, length, depth]
                            const __grid_constant__ CUtensorMap v_map,  // [variants * batch * heads, length, width]
                            const int64_t* windows,                     // [heads] or null
                            T* out,                                     // [variants, batch, heads, length, width]
                            RowSums row_sums, Shape shape) {
  using L = Layout<kDepth, kSlabs>;
  ICL_DYNAMIC_SHARED(memory);
  auto& pipeline = *reinterpret_cast<Pipeline<kStages>*>(memory + L::kBarriers);
  auto& queries = *reinterpret_cast<Pipeline<1>*>(memory + L::kBarriers + sizeof(Pipeline<kStages>));
  if (threadIdx.x == 0) {
    queries.init(kConsumers * 4);
    pipeline.init(kConsumers * 4);
  }
  __syncthreads();  // or a thread waits on an mbarrier that is not there yet

  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  Ring<kStages> at;
  Ring<1> item_at;
  if (warpgroup == 0) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x != 0) return;
    for_each_item<kSlabs>(shape, windows, [&](const Item& item) {
      produce<kDepth, kSlabs>(q_map, k_map, v_map, shape, item, memory, pipeline, queries, at, item_at);
      item_at = item_at.next();
    });
  } else {
    take_registers<kConsumerRegisters>();
    for_each_item<kSlabs>(shape, windows, [&](const Item& item) {
      consume<T, kDepth, kSlabs>(shape, item, out, row_sums, memory, pipeline, queries, at, item_at, warpgroup - 1);
      item_at = item_at.next();
    });
  }
}

template <typename T, int kDepth, int kSlabs>
cudaError_t launch_typed(const FrozenAttention& p, const RowSums& row_sums, cudaStream_t stream) {
  const Shape shape(p, kSlabs);
  const auto map = [&](CUtensorMap* to, const void* data, int64_t planes, int64_t columns, int rows) {
    const int64_t stride = columns * int64_t(sizeof(T));
    return make_tensor_map<T, 3>(to, data, {columns, p.length, planes}, {stride, stride * p.length},
                                 {kSlabColumns, rows, 1});
  };
  CUtensorMap q, k, v;
  cudaError_t status = map(&q, p.q, p.batch * p.heads, p.depth, kRows);
  if (status == cudaSuccess) status = map(&k, p.k, p.batch * p.heads, p.depth, kKeys);
  if (status == cudaSuccess) status = map(&v, p.v, p.variants * p.batch * p.heads, p.width, kKeys);
  if (status != cudaSuccess) return status;
  return launch(frozen_attention_kernel<T, kDepth, kSlabs>,
                std::min<int64_t>(shape.pairs_of_items(), multiprocessors()), kThreadsSm90,
                Layout<kDepth, kSlabs>::kBytes, stream, q, k, v, p.window, static_cast<T*>(p.out), row_sums,
                shape);
}

// As few chunks as hold all slabs, and those of equal size.
template <typename T, int kDepth>
cudaError_t launch_by_slabs(const FrozenAttention& p, const RowSums& row_sums, cudaStream_t stream) {
  const int64_t slabs = p.variants * (p.width / kSlabColumns);
  switch (ceil_div(slabs, ceil_div(slabs, kMostSlabs))) {
    case 1: return launch_typed<T, kDepth, 1>(p, row_sums, stream);
    case 2: return launch_typed<T, kDepth, 2>(p, row_sums, stream);
    case 3: return launch_typed<T, kDepth, std::min(3, kMostSlabs)>(p, row_sums, stream);
    default: return launch_typed<T, kDepth, kMostSlabs>(p, row_sums, stream);
  }
}

template <typename T>
cudaError_t launch_by_depth(const FrozenAttention& p, const RowSums& row_sums, cudaStream_t stream) {
  return p.depth <= 64 ? launch_by_slabs<T, 64>(p, row_sums, stream) : launch_by_slabs<T, 128>(p, row_sums, stream);
}

}  // namespace

// TMA takes 16-byte aligned rows, strides below 2^40 bytes and 32-bit coordinates; a depth between 64 and 128, or below
// 64, is filled up with zeros.
bool frozen_attention_sm90_fits(const FrozenAttention& p) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t planes = p.variants * p.batch * p.heads;
  return p.dtype != Dtype::kFloat32 && !p.pattern && !p.rows && p.depth > 0 && p.depth <= 128 && p.depth % 8 == 0 &&
         p.width > 0 && p.width % kSlabColumns == 0 && p.width < 1 << 16 && p.length > 0 && p.length < 1 << 22 &&
         planes > 0 && planes < kMost && p.variants * p.width < kMost && aligned(p.q) && aligned(p.k) && aligned(p.v) &&
         aligned(p.out);
}

cudaError_t launch_frozen_attention_sm90(const FrozenAttention& p, const RowSums& row_sums, cudaStream_t stream) {
  return p.dtype == Dtype::kBFloat16 ? launch_by_depth<bf16>(p, row_sums, stream)
                                     : launch_by_depth<fp16>(p, row_sums, stream);
}

}  // namespace icl
