// The forward of attention: frozen_attention (the values of many variants, an explicit pattern perhaps, chosen rows) and
// smeared_attention (one variant, keys mixed with their predecessors).
//
// A block owns a tile of query rows of one head and a chunk of the columns of the values, those of all variants side by
// side. It walks over the tiles of keys that its rows see: scores once, online softmax, then the product with the
// chunk, which stays in registers. Warps lie kRowWarps x kColumnWarps. Those of one row share the work of the scores:
// each multiplies its part of the keys, they exchange the maxima of the rows and, through shared memory, the weights.
// To compute the scores in each column warp instead would save a barrier, but at D = 64 and 256 columns it costs a
// fifth more products and twice the exponentials.
//
// Roofline: a key tile costs (D + columns) multiply-adds a score and brings D + columns elements a key; with 128 rows
// bf16 does 128 operations a byte read from the second-level cache, which is where tiles come from: the tensor cores
// are the limit. What is not the product with V is the scores, D / (D + columns) of it all: hence wide chunks.
#pragma once

#include "cuda/attention_tile.h"
#include "cuda/tunables.h"
#include "ops.h"

namespace icl {

enum class Keys { kPlain, kSmeared, kNone };  // kNone: the pattern is given

struct AttentionForward {
  FrozenAttention call;
  const float* gate;  // [heads], and the next two, for smeared keys
  float* peak;        // [batch, heads, length]
  float* log_sum;     // [batch, heads, length]
};

template <typename Element, int kBlocksOfRows, int kWarpsByRow, int kWarpsByColumn, int kKeyTile, int kDepthChunk,
          int kColumnChunk>
struct ForwardShape {
  using T = Element;
  static constexpr int kM = kBlocksOfRows, kRowWarps = kWarpsByRow, kColumnWarps = kWarpsByColumn, kKeys = kKeyTile;
  static constexpr int kDepth = kDepthChunk, kColumns = kColumnChunk;
  static constexpr int kThreads = 32 * kRowWarps * kColumnWarps, kRows = 16 * kM * kRowWarps;
  static constexpr int kOwnKeys = kKeys / kColumnWarps;              // whose scores a warp computes
  static constexpr int kBlocks = kColumns / (8 * kColumnWarps);      // of accumulators, 8 columns each
  static constexpr int kPitch = kDepth + kPad<T>, kValuePitch = kColumns + kPad<T>, kWeightPitch = kKeys + kPad<T>;
  static_assert(kOwnKeys % 16 == 0 && kBlocks % 4 == 0);
};

template <Keys kKeys, typename S>
struct ForwardShared {
  using T = typename S::T;
  static constexpr bool kGiven = kKeys == Keys::kNone;
  static constexpr bool kWeights = kGiven || S::kColumnWarps > 1 || sizeof(T) == 4;  // shared, or in registers

  alignas(16) T values[2][S::kKeys * S::kValuePitch];
  alignas(16) T queries[kGiven ? 1 : S::kRows * S::kPitch];
  alignas(16) T keys[kGiven ? 1 : S::kKeys * S::kPitch];
  alignas(16) T weights[kGiven ? 2 : 1][kWeights ? S::kRows * S::kWeightPitch : 1];
  float exchange[S::kColumnWarps][S::kRows];
  int positions[S::kRows];
};

// Reduces a number per row over the lanes and the warps that share the row.
template <typename S, typename Reduce>
__device__ __forceinline__ void exchange_rows(float (&x)[S::kM][2],
                                              float (&exchange)[S::kColumnWarps][S::kRows], Reduce reduce) {
  const int lane = threadIdx.x % 32, row_warp = threadIdx.x / 32 / S::kColumnWarps;
  const int row = 16 * S::kM * row_warp + lane / 4;
#pragma unroll
  for (int m = 0; m < S::kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      x[m][i] = reduce(x[m][i], __shfl_xor_sync(kFullWarp, x[m][i], 1));
      x[m][i] = reduce(x[m][i], __shfl_xor_sync(kFullWarp, x[m][i], 2));
      if (S::kColumnWarps > 1 && lane % 4 == 0)
        exchange[threadIdx.x / 32 % S::kColumnWarps][row + 16 * m + 8 * i] = x[m][i];
    }
  if constexpr (S::kColumnWarps > 1) {
    named_barrier_sync(1 + row_warp, 32 * S::kColumnWarps);  // the numbers of the other warps of these rows
#pragma unroll
    for (int m = 0; m < S::kM; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[m][i] = exchange[0][row + 16 * m + 8 * i];
#pragma unroll
        for (int other = 1; other < S::kColumnWarps; ++other)
          x[m][i] = reduce(x[m][i], exchange[other][row + 16 * m + 8 * i]);
      }
  }
}

template <Keys kKeys, typename S>
__global__ void __launch_bounds__(S::kThreads, 1) attention_forward(const AttentionForward arguments) {
  using T = typename S::T;
  using Shared = ForwardShared<kKeys, S>;
  constexpr int kM = S::kM, kRows = S::kRows, kTile = S::kKeys, kThreads = S::kThreads, kColumnWarps = S::kColumnWarps;
  ICL_DYNAMIC_SHARED(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const FrozenAttention& p = arguments.call;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row_warp = warp / kColumnWarps, column_warp = warp % kColumnWarps, warp_row = 16 * kM * row_warp;
  const int length = int(p.length);

  // row tiles of a head one after another, for the sake of the cache; the last rows, which see most keys, first
  const int64_t padded_width = round_up(p.width, 8), all_columns = p.variants * padded_width;
  const int64_t row_tiles = ceil_div(p.rows_per_example, kRows);
  const int64_t chunks = ceil_div(all_columns, S::kColumns);
  const int64_t row0 = (row_tiles - 1 - blockIdx.x % row_tiles) * kRows;
  const int64_t column0 = blockIdx.x / row_tiles % chunks * S::kColumns, head = blockIdx.x / row_tiles / chunks;
  const int columns = int(min(all_columns - column0, int64_t(S::kColumns)));
  const int64_t all_heads = p.batch * p.heads;

  for (int r = threadIdx.x; r < kRows; r += kThreads) {
    const int64_t row = min(row0 + r, p.rows_per_example - 1);  // what is too many repeats the last
    shared.positions[r] = int(p.rows ? p.rows[head / p.heads * p.rows_per_example + row] : row);
  }
  __syncthreads();  // positions, before they are read
  int least = length, most = 0, position[kM][2];
  for (int r = lane; r < kRows; r += 32) {
    least = min(least, shared.positions[r]);
    most = max(most, shared.positions[r]);
  }
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) {
    least = min(least, __shfl_xor_sync(kFullWarp, least, bit));
    most = max(most, __shfl_xor_sync(kFullWarp, most, bit));
  }
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) position[m][i] = shared.positions[warp_row + 16 * m + 8 * i + lane / 4];
  const int window = window_of(p.window, head % p.heads, length);
  const int begin = Shared::kGiven ? 0 : max(0, least - window + 1) / kTile * kTile;
  const int end = Shared::kGiven ? length : most + 1;

  // the thread's column of the values: always the same, so that the division by the width is done once
  const T* values = static_cast<const T*>(p.v);
  const bool values_fit = vectors_fit(values, p.width);
  const int value_column = int(threadIdx.x) % (S::kColumns / kVectorWidth<T>)*kVectorWidth<T>;
  int value_count = 0;
  {
    const int64_t column = column0 + value_column, variant = column / padded_width;
    if (variant < p.variants) {
      value_count = clamp_count(p.width - column % padded_width, kVectorWidth<T>);
      if (value_count) values += (variant * all_heads + head) * p.length * p.width + column % padded_width;
    }
  }
  const auto load_values = [&](int key0, int stage) {
    if (value_column >= round_up(columns, 32)) return;  // a group of columns that nobody multiplies
    load_rows<kTile, S::kColumns, kThreads>(shared.values[stage], S::kValuePitch, values_fit,
                                            [&](int row, int, int& count) {
                                              count = key0 + row < end ? value_count : 0;
                                              return count ? values + (key0 + row) * p.width : values;
                                            });
  };

  const int64_t head_offset = head * p.length * p.depth;
  const T* q = static_cast<const T*>(p.q) + head_offset;
  const T* k = static_cast<const T*>(p.k) + head_offset;
  const bool queries_fit = vectors_fit(static_cast<const T*>(p.q), p.depth);
  const bool keys_fit = vectors_fit(static_cast<const T*>(p.k), p.depth);
  const int depth_chunks = int(ceil_div(p.depth, S::kDepth));
  const auto load_queries = [&](int chunk) {
    load_rows<kRows, S::kDepth, kThreads>(shared.queries, S::kPitch, queries_fit, [&](int row, int column, int& count) {
      const int64_t from = int64_t(chunk) * S::kDepth + column;
      count = clamp_count(p.depth - from, kVectorWidth<T>);
      return count ? q + shared.positions[row] * p.depth + from : q;
    });
  };
  SmearedKeys<T, kTile, S::kDepth, kThreads> smeared;
  const auto begin_keys = [&](int key0, int chunk) {
    if constexpr (kKeys == Keys::kSmeared) {
      smeared.begin(k, key0, end, p.depth, int64_t(chunk) * S::kDepth, keys_fit);
    } else {
      load_rows<kTile, S::kDepth, kThreads>(shared.keys, S::kPitch, keys_fit, [&](int row, int column, int& count) {
        const int64_t from = int64_t(chunk) * S::kDepth + column;
        count = key0 + row < end ? clamp_count(p.depth - from, kVectorWidth<T>) : 0;
        return count ? k + (key0 + row) * p.depth + from : k;
      });
    }
  };
  const auto finish_keys = [&] {
    if constexpr (kKeys == Keys::kSmeared) smeared.finish(shared.keys, S::kPitch, arguments.gate[head % p.heads]);
  };
  const auto load_pattern = [&](int key0, int stage) {
    const T* rows = static_cast<const T*>(p.pattern) + head * p.length * p.length;
    const bool fit = vectors_fit(static_cast<const T*>(p.pattern), p.length);
    load_rows<kRows, kTile, kThreads>(shared.weights[stage], S::kWeightPitch, fit,
                                      [&](int row, int column, int& count) {
                                        count = clamp_count(length - key0 - column, kVectorWidth<T>);
                                        return count ? rows + shared.positions[row] * p.length + key0 + column : rows;
                                      });
  };

  if constexpr (Shared::kGiven) {
    load_pattern(begin, 0);
  } else if (depth_chunks > 0) {
    load_queries(0);
    begin_keys(begin, 0);
    finish_keys();
  }
  cp_async_commit();
  load_values(begin, 0);
  cp_async_commit();

  float sums[kM][S::kBlocks][4] = {};
  // Weights are 2^(u - shift). The shift follows the largest score only when that has grown past it by kSlack: then the
  // sums must be multiplied, 128 numbers a lane in the wide shape, which every growth would ask for in most tiles.
  constexpr float kSlack = 8;
  const float unit = p.scale * kLog2E;
  float peak[kM][2], shift[kM][2], total[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) peak[m][i] = shift[m][i] = -INFINITY, total[m][i] = 0;

  int stage = 0;
  for (int key0 = begin; key0 < end; key0 += kTile, stage ^= 1) {
    const int next = key0 + kTile;
    Weights<T, kM, kTile> weights;
    if constexpr (!Shared::kGiven) {
      cp_async_wait<1>();
      __syncthreads();  // the keys are there; all are done with the last tile's weights and values
      constexpr int kOwn = S::kOwnKeys;
      float u[kM][kOwn / 8][4] = {};
      for (int chunk = 0; chunk < depth_chunks; ++chunk) {
        if (chunk > 0) {
          __syncthreads();  // all are done with the last chunk, which the next overwrites
          load_queries(chunk);
          begin_keys(key0, chunk);
          finish_keys();
          cp_async_commit();
          cp_async_wait<0>();
          __syncthreads();  // the chunk is there
        }
        const int left = int(min(p.depth - int64_t(chunk) * S::kDepth, int64_t(S::kDepth)));
        multiply_rows<S::kDepth>(u, shared.queries, warp_row, shared.keys, column_warp * kOwn, S::kPitch, left);
      }
      const bool all_seen = next - 1 <= least && key0 > most - window;
      float largest[kM][2];
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          largest[m][i] = -INFINITY;
          // keys first and on, as many as the window, counted from the lane's first
          const int first = position[m][i] - window + 1 - key0 - column_warp * kOwn - lane % 4 * 2;
#pragma unroll
          for (int block = 0; block < kOwn / 8; ++block)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              float& score = u[m][block][2 * i + j];
              score = __fmul_rn(score, unit);  // not fused with what follows: see attention_tile.h
              if (!all_seen && unsigned(8 * block + j - first) >= unsigned(window)) score = -INFINITY;
              largest[m][i] = fmaxf(largest[m][i], score);
            }
        }
      exchange_rows<S>(largest, shared.exchange, [](float a, float b) { return fmaxf(a, b); });
      bool grown = false;
      float shrink[kM][2];
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          shrink[m][i] = 1;
          peak[m][i] = fmaxf(peak[m][i], largest[m][i]);
          if (largest[m][i] > shift[m][i] + kSlack) {
            shrink[m][i] = exp2_approx(shift[m][i] - largest[m][i]);
            shift[m][i] = largest[m][i];
            total[m][i] *= shrink[m][i];
            grown = true;
          }
          // nothing but -inf so far: any finite shift keeps -inf - shift from being nan
          const float base = shift[m][i] == -INFINITY ? 0 : shift[m][i];
#pragma unroll
          for (int block = 0; block < kOwn / 8; ++block)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              float& score = u[m][block][2 * i + j];
              score = exp2_approx(score - base);
              total[m][i] += score;
            }
        }
      if (key0 > begin && __any_sync(kFullWarp, grown)) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int block = 0; block < S::kBlocks; ++block)
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[m][block][j] *= shrink[m][j / 2];
      }
      if constexpr (Shared::kWeights) {
        store_weights(u, shared.weights[0], S::kWeightPitch, warp_row, column_warp * kOwn);
      } else {
        weights.take(u);
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // the values and the weights are there; all are done with the keys and the last tile's values
    if (next < end) {
      if constexpr (Shared::kGiven) {
        load_pattern(next, stage ^ 1);
      } else if (depth_chunks > 0) {
        if (depth_chunks > 1) load_queries(0);
        begin_keys(next, 0);
      }
      cp_async_commit();
      load_values(next, stage ^ 1);
      cp_async_commit();
    }
    if constexpr (Shared::kWeights)
      weights.load(shared.weights[Shared::kGiven ? stage : 0], S::kWeightPitch, warp_row);
    multiply_values(sums, weights, shared.values[stage], S::kValuePitch, 32 * column_warp, 32 * kColumnWarps, columns);
    if (next < end && depth_chunks > 0) finish_keys();
  }

  float factor[kM][2];
  if constexpr (Shared::kGiven) {
#pragma unroll
    for (int m = 0; m < kM; ++m) factor[m][0] = factor[m][1] = 1;
  } else {
    exchange_rows<S>(total, shared.exchange, [](float a, float b) { return a + b; });
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        factor[m][i] = 1 / total[m][i];
        if constexpr (kKeys == Keys::kSmeared) {
          const int64_t row = row0 + warp_row + 16 * m + 8 * i + lane / 4;
          if (column0 > 0 || column_warp > 0 || lane % 4 > 0 || row >= p.rows_per_example) continue;
          const float natural = peak[m][i] * kLn2;
          arguments.peak[head * p.length + row] = natural;
          // what `natural` was rounded by goes here: the two add up to the logarithm that the weights were divided by
          arguments.log_sum[head * p.length + row] = logf(total[m][i]) + (shift[m][i] - peak[m][i]) * kLn2 +
                                                     fmaf(peak[m][i], kLn2, -natural) + peak[m][i] * kLn2Rest;
        }
      }
  }
  T* out = static_cast<T*>(p.out);
  const bool out_fit = vectors_fit(out, p.width);
#pragma unroll
  for (int group = 0; group < S::kBlocks / 4; ++group) {
    const int group_column = 32 * (group * kColumnWarps + column_warp);
    if (group_column >= columns) break;
    const int64_t column = column0 + group_column + lane % 4 * 8;
    const int64_t variant = column / padded_width, offset = column % padded_width;
    const int count = variant < p.variants ? clamp_count(p.width - offset, 8) : 0;
    store_group<T>(sums, group, factor, out_fit, [&](int row, int, int& how_many) {
      const int64_t at = row0 + warp_row + row;
      how_many = at < p.rows_per_example ? count : 0;
      return out + ((variant * all_heads + head) * p.rows_per_example + at) * p.width + offset;
    });
  }
}

template <Keys kKeys, typename S>
cudaError_t launch_forward(const AttentionForward& arguments, cudaStream_t stream) {
  const FrozenAttention& p = arguments.call;
  const int64_t columns = p.variants * round_up(p.width, 8);
  const int64_t blocks = p.batch * p.heads * ceil_div(p.rows_per_example, S::kRows) * ceil_div(columns, S::kColumns);
  constexpr int kBytes = sizeof(ForwardShared<kKeys, S>);
  static_assert(kBytes <= 99 * 1024, "what sm_86 and sm_89 allow a block");
  return launch(attention_forward<kKeys, S>, blocks, S::kThreads, kBytes, stream, arguments);
}

// The shapes: a tile of few rows for queries chosen by position and short sequences; one for the columns of one head;
// one for many. float32 has half the room for everything: it takes depths over 64 in chunks.
template <typename T, int kDepth>
using FewRows = std::conditional_t<sizeof(T) == 4, ForwardShape<T, 2, 1, 2, 32, 64, 128>,
                                   ForwardShape<T, 2, 1, 4, 64, kDepth, 128>>;
template <typename T>
using FewColumns = std::conditional_t<sizeof(T) == 4, ForwardShape<T, 2, 4, 1, 32, 64, 64>,
                                      ForwardShape<T, ICL_FEW_COLUMNS_ROW_BLOCKS, ICL_FEW_COLUMNS_WARPS, 1,
                                                   ICL_FEW_COLUMNS_KEYS, 64, 64>>;
template <typename T, int kDepth>
using ManyColumns = std::conditional_t<sizeof(T) == 4, ForwardShape<T, 2, 4, 2, 32, 64, 128>,
                                       ForwardShape<T, ICL_MANY_COLUMNS_ROW_BLOCKS, ICL_MANY_COLUMNS_WARPS_DOWN,
                                                    ICL_MANY_COLUMNS_WARPS_ACROSS,
                                                    kDepth == 64 ? ICL_MANY_COLUMNS_KEYS : 32, kDepth,
                                                    ICL_MANY_COLUMNS_COLUMNS>>;

template <Keys kKeys, typename T>
cudaError_t choose_forward(const AttentionForward& arguments, cudaStream_t stream) {
  const FrozenAttention& p = arguments.call;
  const bool few_rows = p.rows_per_example <= 32, deep = p.depth > 64;
  const bool few_columns = p.variants * round_up(p.width, 8) <= 64;
  if constexpr (kKeys != Keys::kNone && sizeof(T) == 2)
    if (deep)
      return few_rows ? launch_forward<kKeys, FewRows<T, 128>>(arguments, stream)
                      : launch_forward<kKeys, ManyColumns<T, 128>>(arguments, stream);
  if (few_rows) return launch_forward<kKeys, FewRows<T, 64>>(arguments, stream);
  if (few_columns) return launch_forward<kKeys, FewColumns<T>>(arguments, stream);
  if constexpr (kKeys == Keys::kSmeared && sizeof(T) == 2)
    return cudaErrorInvalidValue;  // as wide as deep: one of the above
  else
    return launch_forward<kKeys, ManyColumns<T, 64>>(arguments, stream);
}

template <Keys kKeys>
cudaError_t choose_forward(const AttentionForward& arguments, cudaStream_t stream) {
  return with_type(arguments.call.dtype,
                   [&](auto x) { return choose_forward<kKeys, decltype(x)>(arguments, stream); });
}

}  // namespace icl
