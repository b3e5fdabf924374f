// The only header (with hopper.h) that knows which compiler builds the kernels: nvcc, or g++ for the emulator
// (csrc/emu, -DICL_EMU). Every PTX instruction is wrapped here, with what the emulator does for it beside it.
//
// What the kernels keep to, so that both can build them: dynamic shared memory through ICL_DYNAMIC_SHARED, launches
// through ICL_LAUNCH, no PTX of their own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef ICL_EMU
#include "emu/emu.h"

#define ICL_DYNAMIC_SHARED(name) unsigned char* name = static_cast<unsigned char*>(emu::dynamic_shared())
#define ICL_LAUNCH(kernel, grid, block, smem, stream, ...) \
  ((void)(stream),                                          \
   emu::launch(grid, block, smem, emu::kernel_name(reinterpret_cast<const void*>(kernel), #kernel), \
               [=] { kernel(__VA_ARGS__); }))
// The last parameter of a wrapper: the place in the kernel, for the emulator's reports.
#define ICL_WHERE , emu::Loc where = emu::Loc::current()
#define ICL_WHERE_ONLY emu::Loc where = emu::Loc::current()
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ICL_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define ICL_LAUNCH(kernel, grid, block, smem, stream, ...) kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)
#define ICL_WHERE
#define ICL_WHERE_ONLY
#define EMU_UNCHECKED
#endif

namespace icl {

using bf16 = __nv_bfloat16;
using fp16 = __half;

constexpr unsigned kFullWarp = 0xffffffffu;

template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <typename T>
__host__ __device__ constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, fp16>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Two neighbours in one 32-bit register, the first in the low half. T: bf16 or fp16.
template <typename T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&bits, &pair, 4);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&bits, &pair, 4);
  }
  return bits;
}

// d (16 x 8, float32) += a (16 x 16, row-major) * b (16 x 8, column-major), in the fragment layout of
// mma.sync.m16n8k16 (PTX ISA): lane l holds of d the rows l/4 and l/4 + 8, columns 2 (l%4) and the next.
template <typename T>
EMU_UNCHECKED __device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] ICL_WHERE) {
#ifdef ICL_EMU
  struct {
    uint32_t a[4], b[2];
  } own{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* lanes = emu::exchange(kFullWarp, &own, sizeof own, 16, false, where);
  const auto half_of = [](uint32_t word, int i) {
    const uint16_t bits = uint16_t(word >> (16 * i));
    T value;
    memcpy(static_cast<void*>(&value), &bits, 2);
    return to_float(value);
  };
  float a_rows[2][16], b_columns[2][16];
  const int lane = emu::current->lane;
  for (int k = 0; k < 16; ++k)
    for (int i = 0; i < 2; ++i) {
      uint32_t word;
      memcpy(&word, lanes + 64 * (lane / 4 * 4 + k % 8 / 2) + 4 * (i + 2 * (k >= 8)), 4);
      a_rows[i][k] = half_of(word, k & 1);
      memcpy(&word, lanes + 64 * ((lane % 4 * 2 + i) * 4 + k % 8 / 2) + 16 + 4 * (k >= 8), 4);
      b_columns[i][k] = half_of(word, k & 1);
    }
  for (int i = 0; i < 4; ++i)
    d[i] = emu::mma_sync_sum(a_rows[i / 2], b_columns[i & 1], d[i], std::is_same_v<T, bf16>);
#else
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

#ifdef ICL_EMU
// Apart, because the exchanged table is the emulator's memory and what the pointer points to is the kernel's.
EMU_UNCHECKED inline const void* pointer_of_lane(const unsigned char* lanes, int lane) {
  const void* pointer;
  memcpy(&pointer, lanes + 64 * lane, sizeof pointer);
  return pointer;
}
#endif

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l%8 of matrix l/8 (16 bytes, aligned).
template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row ICL_WHERE) {
#ifdef ICL_EMU
  const unsigned char* lanes = emu::exchange(kFullWarp, &row, sizeof row, 17, false, where);
  const int lane = emu::current->lane;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int i = kTransposed ? lane % 4 * 2 + j : lane / 4, column = kTransposed ? lane / 4 : lane % 4 * 2 + j;
      pair[j] = static_cast<const uint16_t*>(pointer_of_lane(lanes, m * 8 + i))[column];
    }
    r[m] = pair[0] | uint32_t(pair[1]) << 16;
  }
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// A barrier for some whole warps of the block, `threads` in all; `id` 1 to 15, __syncthreads is 0.
__device__ __forceinline__ void named_barrier_sync(int id, int threads ICL_WHERE) {
#ifdef ICL_EMU
  emu::named_barrier_sync(id, threads, where);
#else
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

// Copies 16 bytes to shared memory in the background: the first `bytes` (0 to 16) of them from `from`, zeros after.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int bytes ICL_WHERE) {
#ifdef ICL_EMU
  emu::cp_async(to, from, 16, bytes, where);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(bytes)
               : "memory");
#endif
}

__device__ __forceinline__ void cp_async_commit(ICL_WHERE_ONLY) {
#ifdef ICL_EMU
  emu::cp_async_commit(where);
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits for all but the newest kKeep groups of this thread's own copies; a barrier makes the others' visible.
template <int kKeep>
__device__ __forceinline__ void cp_async_wait(ICL_WHERE_ONLY) {
#ifdef ICL_EMU
  emu::cp_async_wait(kKeep, where);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kKeep) : "memory");
#endif
}

constexpr float kLog2E = 1.44269504f;

// 2^x, off by at most 2 ulp; 0 below the smallest normal number.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef ICL_EMU
  return emu::exp2_approx(x);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

// Multiprocessors of the current device, for deciding how far to split work that has too few tiles.
inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace icl
