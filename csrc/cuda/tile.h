// Tiles from global to shared memory.
#pragma once

#include "cuda/numbers.h"
#include "hardware/sm80.h"

namespace icl {

template <typename T>
constexpr int kVectorWidth = 16 / int(sizeof(T));  // elements of one 16-byte access

__device__ __forceinline__ int clamp_count(int64_t left, int most) {
  return left <= 0 ? 0 : left < most ? int(left) : most;
}

// Whether the rows of a matrix can be copied 16 bytes at a time: true of its tiles too, if they begin at a multiple of
// 16 bytes along the row.
template <typename T>
__host__ __device__ inline bool vectors_fit(const T* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * int64_t(sizeof(T)) % 16 == 0;
}

// Copies a tile of kRows x kColumns into shared memory, in rows of `pitch` elements. Beyond `rows` and `columns` (any
// number; what is left of the matrix) it is zero. By cp.async where `vectors`: commit, wait and a barrier come after.
template <int kRows, int kColumns, int kThreads, typename T>
__device__ __forceinline__ void load_tile(T* tile,        // [kRows][pitch]
                                          int pitch,
                                          const T* from,  // [rows][columns], rows `stride` apart
                                          int64_t stride, int64_t rows, int64_t columns, bool vectors) {
  if (vectors) {
    constexpr int kPerRow = kColumns / kVectorWidth<T>;
#pragma unroll
    for (int i = threadIdx.x; i < kRows * kPerRow; i += kThreads) {
      const int row = i / kPerRow, column = i % kPerRow * kVectorWidth<T>;
      const int count = clamp_count(row < rows ? columns - column : 0, kVectorWidth<T>);
      // where nothing is read the address must still be one that could be
      const T* source = count ? from + row * stride + column : from;
      cp_async_16(tile + row * pitch + column, source, count * int(sizeof(T)));
    }
  } else {
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      tile[row * pitch + column] = row < rows && column < columns ? from[row * stride + column] : from_float<T>(0);
    }
  }
}

}  // namespace icl
