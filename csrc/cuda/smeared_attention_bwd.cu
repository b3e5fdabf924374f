// smeared_attention, backward: four kernels. row_numbers: what the others need of every query row. attention_backward,
// twice: for a tile of keys it walks over the queries that see them and keeps the gradients of the values and of the
// smeared keys in registers; for a tile of queries it walks over their keys and keeps the gradient of the queries. So
// nothing is added to in global memory and the result is always the same; the price is that scores and gradients of
// the weights are computed twice, 7 products of a tile where 5 are necessary. unsmear: from the gradients of the
// smeared keys those of the keys and, in two stages, of the gate.
//
// Both walks are one source: own rows (keys or queries) times other rows (queries or keys), with scores [own, other], so
// that weights and gradients of scores are the left operands of the products that follow and stay in registers.
//
// Roofline: a step of 32 others brings 2 * 32 * D elements for 4 (or 3) * 128 * 32 * D multiply-adds: at D = 64 in
// bf16 256 (or 192) operations a byte of the second-level cache; the tensor cores are the limit.
#include "cuda/attention_tile.h"
#include "cuda/tunables.h"
#include "ops.h"

namespace icl {
namespace {

struct Backward {
  SmearedAttentionBwd call;
  // the workspace
  float* high;          // [batch, heads, length]: log2 of the sum of a row's exp2(u), in two parts: high, close to the
  float* low;           // largest u, so that u - high is exact where it matters, and the small rest
  float* mean_grad;     // [batch, heads, length]: the row's gradient of the weights, averaged by the weights
  float* grad_smeared;  // [batch, heads, length, depth]
  double* partial;      // [batch, heads, gate_blocks]: parts of the gradient of the gate
};

constexpr int kUnsmearThreads = 256;
constexpr int kRun = 16;  // keys of one of its lanes
constexpr int kKeysPerBlock = kRun * kUnsmearThreads / 32;

template <typename T>
struct RowNumbersShared {
  static constexpr int kWarps = 4, kRows = 16 * kWarps, kDepth = 64, kPitch = kDepth + kPad<T>;
  alignas(16) T grads[kRows * kPitch];
  alignas(16) T outs[kRows * kPitch];
};

// mean_grad is the product of the row's gradient and output. It is summed as attention_backward sums the gradients of
// the weights, from which it is taken away: so a row that sees one key has gradients of exactly 0. That makes it the
// diagonal of a product of tiles.
template <typename T>
__global__ void __launch_bounds__(32 * RowNumbersShared<T>::kWarps) row_numbers(const Backward p) {
  using Shared = RowNumbersShared<T>;
  ICL_DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const SmearedAttentionFwd& f = p.call.forward;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t rows = f.batch * f.heads * f.length, row0 = int64_t(blockIdx.x) * Shared::kRows;
  const auto load = [&](T* to, const void* from, int64_t chunk) {
    const T* matrix = static_cast<const T*>(from);
    load_tile<Shared::kRows, Shared::kDepth, 32 * Shared::kWarps>(to, Shared::kPitch, matrix + row0 * f.depth + chunk,
                                                                  f.depth, rows - row0, f.depth - chunk,
                                                                  vectors_fit(matrix, f.depth));
  };
  float products[1][2][4] = {};
  for (int64_t chunk = 0; chunk < f.depth; chunk += Shared::kDepth) {
    __syncthreads();  // all are done with the last chunk, which this one overwrites
    load(shared.grads, p.call.grad_out, chunk);
    load(shared.outs, f.out, chunk);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the chunk is there
    multiply_rows<Shared::kDepth>(products, shared.grads, 16 * warp, shared.outs, 16 * warp, Shared::kPitch,
                                  int(min(f.depth - chunk, int64_t(Shared::kDepth))));
  }
  if (lane % 4 != lane / 8) return;  // nothing of the diagonal
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row = row0 + 16 * warp + 8 * i + lane / 4;
    if (row >= rows) continue;
    const float peak = f.peak[row], high = peak * kLog2E;
    p.high[row] = high;
    p.low[row] = fmaf(peak, kLog2E, -high) + peak * kLog2ERest + f.log_sum[row] * kLog2E;
    p.mean_grad[row] = lane / 4 % 2 ? products[0][i][2 * i + 1] : products[0][i][2 * i];
  }
}

// kOneChunk: rows are no wider than a chunk, whose tiles are loaded while the last ones are multiplied.
template <typename Element, int kBlocksOfRows, int kDepthChunk, bool kIsOneChunk, int kWarpCount = 4,
          int kOtherRows = 32>
struct BackwardShape {
  using T = Element;
  static constexpr bool kOneChunk = kIsOneChunk;
  static constexpr int kM = kBlocksOfRows, kDepth = kDepthChunk, kWarps = kWarpCount, kThreads = 32 * kWarps;
  static constexpr int kOwn = 16 * kM * kWarps, kOther = kOtherRows;
  static_assert(3 * kOther <= kThreads, "a thread a number of the other rows");
  static constexpr int kBlocks = kDepth / 8;  // of accumulators
  static constexpr int kPitch = kDepth + kPad<T>, kWeightPitch = kOther + kPad<T>;
};

// Of keys: own rows are the smeared keys and the values, the others queries and gradients of the output; of queries the
// other way round.
template <typename S>
struct BackwardShared {
  using T = typename S::T;
  alignas(16) T own[2][S::kOwn * S::kPitch];
  alignas(16) T other[2][2][S::kOther * S::kPitch];  // [stage]
  alignas(16) float weights[sizeof(T) == 4 ? S::kOwn * S::kWeightPitch : 4];
  alignas(16) float numbers[2][3][S::kOther];  // [stage]: high, low, mean_grad of the other rows
};

// sums += left * other, left a warp's own rows.
template <typename S>
__device__ __forceinline__ void multiply_by(const float (&left)[S::kM][S::kOther / 8][4], BackwardShared<S>& shared,
                                            const typename S::T* other,  // [kOther][kPitch]
                                            int columns, float (&sums)[S::kM][S::kBlocks][4]) {
  Weights<typename S::T, S::kM, S::kOther> operand;
  if constexpr (sizeof(typename S::T) == 4) {
    const int warp_row = threadIdx.x / 32 * 16 * S::kM;
    __syncwarp();  // the lanes have read what was there
    store_weights(left, shared.weights, S::kWeightPitch, warp_row, 0);
    __syncwarp();  // what each lane stored, for the others
    operand.load(shared.weights, S::kWeightPitch, warp_row);
  } else {
    operand.take(left);
  }
  multiply_values(sums, operand, other, S::kPitch, 0, 32, columns);
}

template <bool kOfKeys, typename S>
__global__ void __launch_bounds__(S::kThreads, 1) attention_backward(const Backward p) {
  using T = typename S::T;
  constexpr int kM = S::kM, kThreads = S::kThreads, kOther = S::kOther;
  ICL_DYNAMIC_SHARED(memory);
  BackwardShared<S>& shared = *reinterpret_cast<BackwardShared<S>*>(memory);
  const SmearedAttentionFwd& f = p.call.forward;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_row = 16 * kM * warp;
  const int length = int(f.length);

  // the first keys are seen by most queries, the last queries see most keys: those tiles first
  const int64_t tiles = ceil_div(f.length, S::kOwn), chunks = ceil_div(f.depth, S::kDepth);
  const int64_t tile = kOfKeys ? blockIdx.x % tiles : tiles - 1 - blockIdx.x % tiles;
  const int own_chunk = int(blockIdx.x / tiles % chunks);  // of the columns of the gradients
  const int64_t head = blockIdx.x / tiles / chunks;
  const int own0 = int(tile) * S::kOwn, window = window_of(f.window, head % f.heads, length);
  const int last_own = min(own0 + S::kOwn, length) - 1;
  const int begin = kOfKeys ? own0 : max(0, own0 - window + 1) / kOther * kOther;
  const int end = kOfKeys ? min(int64_t(length), int64_t(last_own) + window) : last_own + 1;

  const int64_t offset = head * f.length * f.depth;
  const T* k = static_cast<const T*>(f.k) + offset;
  const bool keys_fit = vectors_fit(static_cast<const T*>(f.k), f.depth);
  const float gate = f.gate[head % f.heads];
  // a tile of q, v or grad_out
  const auto load = [&]<int kRows>(T* to, const void* from, int row0, int until, int chunk) {
    const T* rows = static_cast<const T*>(from);
    const bool fit = vectors_fit(rows, f.depth);
    rows += offset;
    load_rows<kRows, S::kDepth, kThreads>(to, S::kPitch, fit, [&](int row, int column, int& count) {
      const int64_t at = int64_t(chunk) * S::kDepth + column;
      count = row0 + row < until ? clamp_count(f.depth - at, kVectorWidth<T>) : 0;
      return count ? rows + (row0 + row) * f.depth + at : rows;
    });
  };
  const auto load_own = [&](int chunk) {
    if constexpr (kOfKeys) {
      SmearedKeys<T, S::kOwn, S::kDepth, kThreads> smeared;
      smeared.begin(k, own0, length, f.depth, int64_t(chunk) * S::kDepth, keys_fit);
      smeared.finish(shared.own[0], S::kPitch, gate);
    } else {
      load.template operator()<S::kOwn>(shared.own[0], f.q, own0, length, chunk);
    }
    load.template operator()<S::kOwn>(shared.own[1], kOfKeys ? f.v : p.call.grad_out, own0, length, chunk);
  };
  // what goes through registers is stored by finish_other
  SmearedKeys<T, kOther, S::kDepth, kThreads> smeared;
  float number = 0;
  const auto begin_other = [&](int other0, int chunk, int stage) {
    if constexpr (kOfKeys) {
      load.template operator()<kOther>(shared.other[stage][0], f.q, other0, end, chunk);
      if (threadIdx.x < 3 * kOther) {
        const int kind = threadIdx.x / kOther, query = other0 + int(threadIdx.x) % kOther;
        const float* from = kind == 0 ? p.high : kind == 1 ? p.low : p.mean_grad;
        // no query: a weight of 0
        number = query < end ? from[head * f.length + query] : kind == 0 ? INFINITY : 0;
      }
    } else {
      smeared.begin(k, other0, end, f.depth, int64_t(chunk) * S::kDepth, keys_fit);
    }
    load.template operator()<kOther>(shared.other[stage][1], kOfKeys ? p.call.grad_out : f.v, other0, end, chunk);
  };
  const auto finish_other = [&](int stage) {
    if constexpr (kOfKeys) {
      if (threadIdx.x < 3 * kOther) shared.numbers[stage][threadIdx.x / kOther][threadIdx.x % kOther] = number;
    } else {
      smeared.finish(shared.other[stage][0], S::kPitch, gate);
    }
  };

  float own_numbers[3][kM][2] = {};
  if constexpr (!kOfKeys) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = own0 + warp_row + 16 * m + 8 * i + lane / 4;
        const int64_t row = head * f.length + query;
        own_numbers[0][m][i] = query < length ? p.high[row] : INFINITY;
        own_numbers[1][m][i] = query < length ? p.low[row] : 0;
        own_numbers[2][m][i] = query < length ? p.mean_grad[row] : 0;
      }
  }

  if constexpr (S::kOneChunk) {
    load_own(0);
    begin_other(begin, 0, 0);
    finish_other(0);
    cp_async_commit();
  }
  float grads[kM][S::kBlocks][4] = {};                             // of smeared keys, or of queries
  float grad_values[kOfKeys ? kM : 1][kOfKeys ? S::kBlocks : 4][4] = {};
  const float unit = f.scale * kLog2E;
  const int own_columns = int(min(f.depth - int64_t(own_chunk) * S::kDepth, int64_t(S::kDepth)));

  int stage = 0;
  for (int other0 = begin; other0 < end; other0 += kOther) {
    const int next = other0 + kOther;
    float weights[kM][kOther / 8][4] = {}, slopes[kM][kOther / 8][4] = {};
    const auto multiply = [&](int columns) {
      multiply_rows<S::kDepth>(weights, shared.own[0], warp_row, shared.other[stage][0], 0, S::kPitch, columns);
      multiply_rows<S::kDepth>(slopes, shared.own[1], warp_row, shared.other[stage][1], 0, S::kPitch, columns);
    };
    if constexpr (S::kOneChunk) {
      cp_async_wait<0>();
      __syncthreads();  // this step's tiles are there; all are done with the last step's, which the next overwrites
      if (next < end) {
        begin_other(next, 0, stage ^ 1);
        cp_async_commit();
      }
      multiply(own_columns);
    } else {
      // no room for whole rows: chunk by chunk, in the order of the forward, so that u is the same
      for (int chunk = 0; chunk < chunks; ++chunk) {
        __syncthreads();  // all are done with the last chunk, which this one overwrites
        load_own(chunk);
        begin_other(other0, chunk, stage);
        finish_other(stage);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // the chunk is there
        multiply(int(min(f.depth - int64_t(chunk) * S::kDepth, int64_t(S::kDepth))));
      }
      if (own_chunk + 1 < chunks) {  // what the gradients' columns are summed from
        __syncthreads();  // all are done with the last chunk
        begin_other(other0, own_chunk, stage);
        finish_other(stage);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // the chunk is there
      }
    }

    // every own row and every other one see each other
    const bool all_seen = kOfKeys ? other0 >= own0 + S::kOwn - 1 && next - 1 - own0 < window
                                  : own0 >= next - 1 && own0 + S::kOwn - 1 - other0 < window;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int block = 0; block < kOther / 8; ++block)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = 8 * block + lane % 4 * 2 + j;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float &weight = weights[m][block][2 * i + j], &slope = slopes[m][block][2 * i + j];
            const auto of_query = [&](int kind) {
              return kOfKeys ? shared.numbers[stage][kind][column] : own_numbers[kind][m][i];
            };
            weight = exp2_approx((__fmul_rn(weight, unit) - of_query(0)) - of_query(1));
            slope = weight * (slope - of_query(2));
            const int behind = (other0 + column) - (own0 + warp_row + 16 * m + 8 * i + lane / 4);
            if (!all_seen && unsigned(kOfKeys ? behind : -behind) >= unsigned(window)) weight = slope = 0;
          }
        }
    if constexpr (kOfKeys) multiply_by<S>(weights, shared, shared.other[stage][1], own_columns, grad_values);
    multiply_by<S>(slopes, shared, shared.other[stage][0], own_columns, grads);
    if constexpr (S::kOneChunk) {
      stage ^= 1;
      if (next < end) finish_other(stage);
    }
  }

  float ones[kM][2], scales[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) ones[m][0] = ones[m][1] = 1, scales[m][0] = scales[m][1] = f.scale;
  const auto store = [&](auto* to, const auto& sums, const auto& factor) {
    using Out = std::remove_pointer_t<decltype(to)>;
    const bool fit = vectors_fit(to, f.depth);
#pragma unroll
    for (int group = 0; group < S::kBlocks / 4; ++group)
      store_group<Out>(sums, group, factor, fit, [&](int row, int column, int& count) {
        const int64_t at = own0 + warp_row + row;
        count = at < length ? clamp_count(own_columns - 32 * group - column, 8) : 0;
        return to + offset + at * f.depth + int64_t(own_chunk) * S::kDepth + 32 * group + column;
      });
  };
  if constexpr (kOfKeys) {
    store(static_cast<T*>(p.call.grad_v), grad_values, ones);
    store(p.grad_smeared, grads, scales);
  } else {
    store(static_cast<T*>(p.call.grad_q), grads, scales);
  }
}

// Key j feeds its own smeared key and the next one: grad_k_j = gate g_j + (1 - gate) g_{j+1}, at key 0, which is not
// smeared, g_0 + (1 - gate) g_1. Of the gate: the sum of g_j (k_j - k_{j-1}). A lane takes a column of a run of keys.
template <typename T>
__global__ void __launch_bounds__(kUnsmearThreads) unsmear(const Backward p) {
  const SmearedAttentionFwd& f = p.call.forward;
  const int64_t blocks = ceil_div(f.length, kKeysPerBlock), head = blockIdx.x / blocks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first = blockIdx.x % blocks * kKeysPerBlock + warp * kRun;
  const int64_t last = min(first + kRun, f.length);
  const float gate = f.gate[head % f.heads];
  const int64_t offset = head * f.length * f.depth;
  const float* grad_smeared = p.grad_smeared + offset;
  const T* k = static_cast<const T*>(f.k) + offset;
  T* grad_k = static_cast<T*>(p.call.grad_k) + offset;
  double total = 0;
  if (first < last)
    for (int64_t column = lane; column < f.depth; column += 32) {
      float grad = grad_smeared[first * f.depth + column];
      float before = first > 0 ? to_float(k[(first - 1) * f.depth + column]) : 0;
      for (int64_t j = first; j < last; ++j) {
        const int64_t at = j * f.depth + column;
        const float here = to_float(k[at]), next = j + 1 < f.length ? grad_smeared[at + f.depth] : 0;
        grad_k[at] = from_float<T>((j == 0 ? 1 : gate) * grad + (1 - gate) * next);
        if (j > 0) total += double(grad) * (double(here) - double(before));  // much of the sum cancels
        grad = next, before = here;
      }
    }
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) total += __shfl_xor_sync(kFullWarp, total, bit);
  __shared__ double parts[kUnsmearThreads / 32];
  if (lane == 0) parts[warp] = total;
  __syncthreads();  // the sums of all warps
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kUnsmearThreads / 32; ++i) total += parts[i];
  p.partial[blockIdx.x] = total;
}

// A warp a head.
__global__ void __launch_bounds__(32) sum_gate(const Backward p) {
  const int64_t parts = ceil_div(p.call.forward.length, kKeysPerBlock);
  double total = 0;
  for (int64_t i = threadIdx.x; i < parts; i += 32) total += p.partial[blockIdx.x * parts + i];
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) total += __shfl_xor_sync(kFullWarp, total, bit);
  if (threadIdx.x == 0) p.call.grad_gate[blockIdx.x] = total;
}

template <bool kOfKeys, typename S>
cudaError_t launch_products(const Backward& arguments, cudaStream_t stream) {
  const SmearedAttentionFwd& f = arguments.call.forward;
  const int64_t blocks =
      f.batch * f.heads * ceil_div(f.length, S::kOwn) * ceil_div(f.depth, S::kDepth);
  constexpr int kBytes = sizeof(BackwardShared<S>);
  static_assert(kBytes <= 99 * 1024, "what sm_86 and sm_89 allow a block");
  return launch(attention_backward<kOfKeys, S>, blocks, S::kThreads, kBytes, stream, arguments);
}

template <typename S>
cudaError_t launch_all(const Backward& arguments, cudaStream_t stream) {
  using T = typename S::T;
  const SmearedAttentionFwd& f = arguments.call.forward;
  const int64_t heads = f.batch * f.heads, rows = heads * f.length;
  using Numbers = RowNumbersShared<T>;
  cudaError_t status = launch(row_numbers<T>, ceil_div(rows, Numbers::kRows), 32 * Numbers::kWarps,
                              sizeof(Numbers), stream, arguments);
  if (status == cudaSuccess) status = launch_products<true, S>(arguments, stream);
  if (status == cudaSuccess) status = launch_products<false, S>(arguments, stream);
  if (status == cudaSuccess)
    status = launch(unsmear<T>, heads * ceil_div(f.length, kKeysPerBlock), kUnsmearThreads, 0, stream,
                    arguments);
  if (status == cudaSuccess) status = launch(sum_gate, heads, 32, 0, stream, arguments);
  return status;
}

// Warps of 32 own rows, which use every operand from shared memory twice, where the accumulators leave room for them.
template <typename T>
cudaError_t choose_backward(const Backward& arguments, cudaStream_t stream) {
  constexpr int kDepth = sizeof(T) == 4 ? 64 : 128;
  const int64_t depth = arguments.call.forward.depth;
  if constexpr (sizeof(T) == 2)
    if (depth <= 64)
      return launch_all<BackwardShape<T, ICL_BACKWARD_ROW_BLOCKS, 64, true, ICL_BACKWARD_WARPS, ICL_BACKWARD_OTHERS>>(
          arguments, stream);
  if (depth <= kDepth) return launch_all<BackwardShape<T, 1, kDepth, true>>(arguments, stream);
  return launch_all<BackwardShape<T, 1, kDepth, false>>(arguments, stream);
}

Backward cut(const SmearedAttentionBwd& p, Workspace& memory) {
  const SmearedAttentionFwd& f = p.forward;
  const int64_t heads = f.batch * f.heads, rows = heads * f.length;
  return {.call = p,
          .high = memory.take<float>(rows),
          .low = memory.take<float>(rows),
          .mean_grad = memory.take<float>(rows),
          .grad_smeared = memory.take<float>(rows * f.depth),
          .partial = memory.take<double>(heads * ceil_div(f.length, kKeysPerBlock))};
}

}  // namespace

size_t smeared_attention_bwd_workspace(const SmearedAttentionBwd& p, int) {
  Workspace memory(nullptr);
  cut(p, memory);
  return memory.size();
}

cudaError_t launch_smeared_attention_bwd(const SmearedAttentionBwd& p, void* workspace, int, cudaStream_t stream) {
  const SmearedAttentionFwd& f = p.forward;
  if (f.batch * f.heads == 0) return cudaSuccess;
  if (f.length * f.depth == 0)
    return cudaMemsetAsync(p.grad_gate, 0, size_t(f.batch * f.heads) * sizeof(double), stream);
  Workspace memory(workspace);
  const Backward arguments = cut(p, memory);
  return with_type(f.dtype, [&](auto x) { return choose_backward<decltype(x)>(arguments, stream); });
}

}  // namespace icl
