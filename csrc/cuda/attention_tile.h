// What the attention kernels share: tiles whose rows lie anywhere, keys mixed with their predecessors on the way to
// shared memory, the two products of a tile, stores of accumulators.
//
// Scores are kept as powers of 2: u = scale * log2(e) * q.k, rounded once, the same in forward and backward, so that
// differences from the largest are exact where they matter (a product fused with a difference is rounded otherwise).
#pragma once

#include <cmath>

#include "cuda/launch.h"
#include "cuda/mma.h"
#include "cuda/tile.h"
#include "cuda/warp.h"

namespace icl {

// Straight-line code of this many steps of a product. Steps of float32 are long, and no registers depend on them.
template <typename T>
constexpr int kUnrolledSteps = sizeof(T) == 4 ? 1 : 8;

// 16 bytes of which the first `count` elements are read; zeros after.
template <typename T>
__device__ __forceinline__ uint4 read_wide(const T* from, int count, bool vectors) {
  if (vectors && count == kVectorWidth<T>) return *reinterpret_cast<const uint4*>(from);
  T elements[kVectorWidth<T>];
#pragma unroll
  for (int i = 0; i < kVectorWidth<T>; ++i) elements[i] = i < count ? from[i] : from_float<T>(0);
  uint4 bits;
  memcpy(&bits, elements, 16);
  return bits;
}

// As load_tile, of rows that need not be apart evenly: source(row, column, &count) is where the row goes on from
// `column` and how many elements to read (0 to kVectorWidth). A thread asks for one column only.
template <int kRows, int kColumns, int kThreads, typename T, typename Source>
__device__ __forceinline__ void load_rows(T* tile,  // [kRows][pitch]
                                          int pitch, bool vectors, Source source) {
  constexpr int kPerRow = kColumns / kVectorWidth<T>, kStep = kThreads / kPerRow;
  static_assert(kThreads % kPerRow == 0 && kRows % kStep == 0);
  const int column = int(threadIdx.x) % kPerRow * kVectorWidth<T>;
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int row = int(threadIdx.x) / kPerRow + i * kStep;
    int count = 0;
    const T* from = source(row, column, count);
    T* to = tile + row * pitch + column;
    if (vectors) {
      cp_async_16(to, from, count * int(sizeof(T)));
    } else {
      *reinterpret_cast<uint4*>(to) = read_wide(from, count, false);
    }
  }
}

// Keys of one head, a tile of them at a time, on the way through registers: begin() reads, finish() mixes each with the
// one before it and stores. What lies between hides the latency, as cp.async would for keys that need no mixing.
template <typename T, int kRows, int kColumns, int kThreads>
struct SmearedKeys {
  static constexpr int kPerRow = kColumns / kVectorWidth<T>, kRun = kRows * kPerRow / kThreads;
  static_assert(kThreads % kPerRow == 0 && kRun * kThreads == kRows * kPerRow);

  uint4 raw[kRun + 1];  // of a run of keys that follow each other, and of the one before them: no key is read twice
  int key0;

  __device__ __forceinline__ void begin(const T* k,  // [length, depth]
                                        int first_key, int length, int64_t depth, int64_t first_column, bool vectors) {
    key0 = first_key + int(threadIdx.x) / kPerRow * kRun;
    const int64_t column = first_column + int(threadIdx.x) % kPerRow * kVectorWidth<T>;
    const int columns = clamp_count(depth - column, kVectorWidth<T>);
#pragma unroll
    for (int i = 0; i <= kRun; ++i) {
      const int key = key0 + i - 1;
      const int count = key >= 0 && key < length ? columns : 0;
      raw[i] = read_wide(count ? k + key * depth + column : k, count, vectors);
    }
  }

  __device__ __forceinline__ void finish(T* tile,  // [kRows][pitch]
                                         int pitch, float gate) const {
    const int row0 = int(threadIdx.x) / kPerRow * kRun, column = int(threadIdx.x) % kPerRow * kVectorWidth<T>;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float own = key0 + i == 0 ? 1.0f : gate, rest = 1 - own;
      T before[kVectorWidth<T>], here[kVectorWidth<T>], mixed[kVectorWidth<T>];
      memcpy(static_cast<void*>(before), &raw[i], 16), memcpy(static_cast<void*>(here), &raw[i + 1], 16);
#pragma unroll
      for (int j = 0; j < kVectorWidth<T>; ++j)
        mixed[j] = from_float<T>(fmaf(to_float(here[j]), own, to_float(before[j]) * rest));
      uint4 bits;
      memcpy(&bits, mixed, 16);
      *reinterpret_cast<uint4*>(tile + (row0 + i) * pitch + column) = bits;
    }
  }
};

// s += a b^T: rows m.. of a (16 kM of them) and n.. of b (8 kBlocks), over the first `depth` of at most kDepth columns.
// float32 sums these by themselves first: a short sum added to a long one is rounded once, not at every step.
template <int kDepth, typename T, int kM, int kBlocks>
__device__ __forceinline__ void multiply_rows(float (&s)[kM][kBlocks][4],
                                              const T* a, int m,  // [..][pitch]
                                              const T* b, int n,  // [..][pitch]
                                              int pitch, int depth) {
  using M = Mma<T>;
  constexpr bool kApart = sizeof(T) == 4;
  float sums[kM][kBlocks][4];
#pragma unroll
  for (int i = 0; i < 4 * kM * kBlocks; ++i)
    sums[i / 4 / kBlocks][i / 4 % kBlocks][i % 4] = kApart ? 0 : s[i / 4 / kBlocks][i / 4 % kBlocks][i % 4];
#pragma unroll kUnrolledSteps<T>
  for (int k = 0; k < kDepth; k += M::kDepth) {
    if (k >= depth) break;
    typename M::A left[kM];
#pragma unroll
    for (int i = 0; i < kM; ++i) left[i] = M::load_a(a, pitch, m + 16 * i, k);
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      const typename M::B right = M::load_b(b, pitch, n + 8 * j, k);
#pragma unroll
      for (int i = 0; i < kM; ++i) M::product(sums[i][j], sums[i][j + 1], left[i], right);
    }
  }
#pragma unroll
  for (int i = 0; i < 4 * kM * kBlocks; ++i) {
    float& sum = s[i / 4 / kBlocks][i / 4 % kBlocks][i % 4];
    sum = kApart ? sum + sums[i / 4 / kBlocks][i / 4 % kBlocks][i % 4] : sums[i / 4 / kBlocks][i / 4 % kBlocks][i % 4];
  }
}

// Weights of a warp's rows for kKeys keys, the left operand of the product with the values. In registers for bf16 and
// fp16; for float32 an operand is four times its accumulators, so it is read from shared memory, step by step.
template <typename T, int kM, int kKeys>
struct Weights {
  static constexpr int kSteps = kKeys / Mma<T>::kDepth;
  typename Mma<T>::A a[kM][kSteps];

  __device__ __forceinline__ void take(const float (&w)[kM][kKeys / 8][4]) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int step = 0; step < kSteps; ++step) a[m][step] = Mma<T>::from_accumulators(w[m], step);
  }
  __device__ __forceinline__ void load(const T* tile, int pitch, int row) {  // tile [..][pitch]
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        a[m][step] = Mma<T>::load_a(tile, pitch, row + 16 * m, step * Mma<T>::kDepth);
  }
  __device__ __forceinline__ typename Mma<T>::A at(int m, int step) const { return a[m][step]; }
};

template <int kM, int kKeys>
struct Weights<float, kM, kKeys> {
  static constexpr int kSteps = kKeys / Mma<float>::kDepth;
  const float* rows;
  int pitch;

  __device__ __forceinline__ void load(const float* tile, int tile_pitch, int row) {
    rows = tile + row * tile_pitch;
    pitch = tile_pitch;
  }
  __device__ __forceinline__ Mma<float>::A at(int m, int step) const {
    return Mma<float>::load_a(rows, pitch, 16 * m, step * Mma<float>::kDepth);
  }
};

// Accumulators, rounded to T, into a tile [..][pitch] at a warp's rows and columns.
template <typename T, int kM, int kBlocks>
__device__ __forceinline__ void store_weights(const float (&w)[kM][kBlocks][4], T* tile, int pitch, int row,
                                              int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float first = w[m][block][2 * i], second = w[m][block][2 * i + 1];
        T* to = tile + (row + 16 * m + 8 * i + lane / 4) * pitch + column + 8 * block + lane % 4 * 2;
        if constexpr (sizeof(T) == 4) {
          *reinterpret_cast<float2*>(to) = make_float2(first, second);
        } else {
          *reinterpret_cast<uint32_t*>(to) = pack<T>(first, second);
        }
      }
}

// d += weights * values for groups of 32 columns, `apart` columns apart; those from `columns` on are left out. float32
// sums a tile by itself first, as above.
template <typename T, int kM, int kKeys, int kBlocks>
__device__ __forceinline__ void multiply_values(float (&d)[kM][kBlocks][4], const Weights<T, kM, kKeys>& weights,
                                                const T* values,  // [kKeys][pitch]
                                                int pitch, int first_column, int apart, int columns) {
  using M = Mma<T>;
  constexpr bool kApart = sizeof(T) == 4;
#pragma unroll
  for (int group = 0; group < kBlocks / 4; ++group) {
    const int column = first_column + group * apart;
    if (column >= columns) break;
    float sums[kM][4][4];
#pragma unroll
    for (int i = 0; i < 16 * kM; ++i)
      sums[i / 16][i / 4 % 4][i % 4] = kApart ? 0 : d[i / 16][4 * group + i / 4 % 4][i % 4];
#pragma unroll kUnrolledSteps<T>
    for (int step = 0; step < kKeys / M::kDepth; ++step)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const typename M::B right = M::load_b_transposed(values, pitch, column + 16 * half, step * M::kDepth);
#pragma unroll
        for (int m = 0; m < kM; ++m) M::product(sums[m][2 * half], sums[m][2 * half + 1], weights.at(m, step), right);
      }
#pragma unroll
    for (int i = 0; i < 16 * kM; ++i) {
      float& sum = d[i / 16][4 * group + i / 4 % 4][i % 4];
      sum = kApart ? sum + sums[i / 16][i / 4 % 4][i % 4] : sums[i / 16][i / 4 % 4][i % 4];
    }
  }
}

// Stores a group of 32 columns of a warp's accumulators, times factor[m][i] in rows lane / 4 + 8 i of block m. Every lane
// gets eight neighbouring columns of its rows, so that it can store 16 bytes at once. place(row, column, &count): where
// they go, and how many (0 to 8); the row is of the warp's, the column of the group's.
template <typename Out, int kM, int kBlocks, typename Place>
__device__ __forceinline__ void store_group(const float (&d)[kM][kBlocks][4], int group, const float (&factor)[kM][2],
                                            bool vectors, Place place) {
  constexpr int kWords = sizeof(Out) == 4 ? 8 : 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t words[kWords];
      if constexpr (sizeof(Out) == 4) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          uint32_t column[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) column[j] = __float_as_uint(d[m][4 * group + j][2 * i + odd] * factor[m][i]);
          transpose(column);
#pragma unroll
          for (int j = 0; j < 4; ++j) words[2 * j + odd] = column[j];
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float(&pair)[4] = d[m][4 * group + j];
          words[j] = pack<Out>(pair[2 * i] * factor[m][i], pair[2 * i + 1] * factor[m][i]);
        }
        transpose(words);
      }
      int count = 0;
      Out* to = place(16 * m + 8 * i + lane / 4, lane % 4 * 8, count);
      if (vectors && count == 8) {
#pragma unroll
        for (int j = 0; j < kWords / 4; ++j)
          reinterpret_cast<uint4*>(to)[j] =
              make_uint4(words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3]);
      } else {
        Out elements[8];
        memcpy(static_cast<void*>(elements), words, sizeof words);
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (j < count) to[j] = elements[j];
      }
    }
}

// The window of a head as a number of keys: all `length` of them where it is dense.
__device__ __forceinline__ int window_of(const int64_t* window,  // [heads] or null
                                         int64_t head, int length) {
  const int64_t size = window ? window[head] : 0;
  return size <= 0 || size > length ? length : int(size);
}

}  // namespace icl
