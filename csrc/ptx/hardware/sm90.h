// Hopper's own PTX instructions (sm_90a): mbarriers, TMA copies, wgmma, register reallocation. Beside
// csrc/emu/hardware/sm90.h, as sm80.h says.
#pragma once

#include <cuda.h>  // types only: nothing links libcuda
#include <cudaTypedefs.h>

#include <algorithm>
#include <type_traits>

#include "cuda/numbers.h"

namespace icl {

// An address as instructions and descriptors hold it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- mbarriers ----

__device__ __forceinline__ void mbarrier_init(uint64_t* bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}

// Makes this thread's initialisations visible to TMA; a barrier makes them visible to the other threads.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(bar)) : "memory");
}

// Arrives; the phase completes when `bytes` more have been copied.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}

// Waits for the phase of this parity to complete. Of a new mbarrier, the phase before the first (parity 1) has.
__device__ __forceinline__ void mbarrier_wait(uint64_t* bar, int parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
  } while (!done);
}

// ---- TMA ----

// Describes a tensor of kRank dimensions, innermost first, and the box of it that one copy takes: as wide as a
// swizzled row of 128 bytes. strides: in bytes, of dimensions 1 and up, multiples of 16, as is `data`.
template <typename T, int kRank>
inline cudaError_t make_tensor_map(CUtensorMap* map, const void* data, const int64_t (&dims)[kRank],
                                   const int64_t (&strides)[kRank - 1], const int (&box)[kRank]) {
  static_assert(sizeof(T) == 2);
  cuuint64_t sizes[kRank], pitches[kRank - 1];
  cuuint32_t boxes[kRank];
  std::copy_n(dims, kRank, sizes);
  std::copy_n(strides, kRank - 1, pitches);
  std::copy_n(box, kRank, boxes);
  static const auto encode = [] {  // from the driver, which may be older than the toolkit
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found == cudaDriverEntryPointSuccess ? function
                                                                                                    : nullptr);
  }();
  if (!encode) return cudaErrorInsufficientDriver;
  cuuint32_t steps[kRank];
  std::fill_n(steps, kRank, 1);
  constexpr auto kType =
      std::is_same_v<T, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result =
      encode(map, kType, kRank, const_cast<void*>(data), sizes, pitches, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Copies the box whose corner is at `x, y` (and `z`) to shared memory; what lies outside the tensor becomes zero, and
// counts as copied.
__device__ __forceinline__ void tma_load(void* to, const CUtensorMap& map, uint64_t* full, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(full)), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void tma_load(void* to, const CUtensorMap& map, uint64_t* full, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(shared_address(full)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// ---- wgmma ----

// Between the warpgroup's own accesses to registers and the wgmma that use them.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// The compiler neither computes these values later than here nor uses them earlier.
template <int kCount>
__device__ __forceinline__ void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Waits for all but the newest kKeep groups.
template <int kKeep>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kKeep) : "memory");
}

// The same, and `results`, accumulators of those waited for, can be used; the compiler knows nothing of the connection.
template <int kKeep, int kCount>
__device__ __forceinline__ void wgmma_wait(float (&results)[kCount]) {
  wgmma_wait<kKeep>();
  pin(results);
}

// The operand list of 32, 64, 96 and 128 accumulators, and the same as asm operands.
#define ICL_R32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define ICL_R64 ICL_R32 \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define ICL_R96 ICL_R64 \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define ICL_R128 ICL_R96 \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define ICL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ICL_D16(i) ICL_D4(i), ICL_D4(i + 4), ICL_D4(i + 8), ICL_D4(i + 12)
#define ICL_D32 ICL_D16(0), ICL_D16(16)
#define ICL_D64 ICL_D32, ICL_D16(32), ICL_D16(48)
#define ICL_D96 ICL_D64, ICL_D16(64), ICL_D16(80)
#define ICL_D128 ICL_D96, ICL_D16(96), ICL_D16(112)

// count: of accumulators; a, b, p: the numbers of the operands after them. The last immediates: no negation, A and B as
// rows of the depth.
#define ICL_WGMMA(types, n, count, a, b, p)                                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types \
               " {" ICL_R##count "}, %" #a ", %" #b ", p, 1, 1, 0, 0;\n}\n"                                          \
               : ICL_D##count                                                                                        \
               : "l"(a_tile), "l"(b_tile), "r"(int(accumulate)))
// A in the four registers from a0 on; B as columns of the depth.
#define ICL_WGMMA_REGISTER_A(types, n, count, a0, a1, a2, a3, b, p)                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types \
               " {" ICL_R##count "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b ", p, 1, 1, 1;\n}\n"               \
               : ICL_D##count                                                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile), "r"(int(accumulate)))
#define ICL_BY_TYPE(macro, ...)            \
  if constexpr (std::is_same_v<T, bf16>) { \
    macro("bf16.bf16", __VA_ARGS__);       \
  } else {                                 \
    macro("f16.f16", __VA_ARGS__);         \
  }

// d (64 x kN, float32) (+)= a (64 x 16) * b (16 x kN), both in shared memory, their rows along the
// depth. Lane l of warp w of
// the warpgroup holds in d[4 j], d[4 j + 1] row 16 w + l/4, columns 8 j + 2 (l%4) and the next, and in d[4 j + 2],
// d[4 j + 3] the same columns of the row 8 below. Asynchronous: d is not to be touched before a wait.
template <typename T, int kN>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a_tile, uint64_t b_tile, bool accumulate) {
  static_assert(kN == 64 || kN == 128 || kN == 192 || kN == 256);
  if constexpr (kN == 64) {
    ICL_BY_TYPE(ICL_WGMMA, 64, 32, 32, 33, 34)
  } else if constexpr (kN == 128) {
    ICL_BY_TYPE(ICL_WGMMA, 128, 64, 64, 65, 66)
  } else if constexpr (kN == 192) {
    ICL_BY_TYPE(ICL_WGMMA, 192, 96, 96, 97, 98)
  } else {
    ICL_BY_TYPE(ICL_WGMMA, 256, 128, 128, 129, 130)
  }
}

// The same with a in registers, in the layout of mma.sync's a fragment (16 rows a warp), and b as `depth_in_columns`.
// The registers of a are read asynchronously too.
template <typename T, int kN>
__device__ __forceinline__ void wgmma_register_a(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_tile,
                                                 bool accumulate) {
  static_assert(kN == 64 || kN == 128 || kN == 192 || kN == 256);
  if constexpr (kN == 64) {
    ICL_BY_TYPE(ICL_WGMMA_REGISTER_A, 64, 32, 32, 33, 34, 35, 36, 37)
  } else if constexpr (kN == 128) {
    ICL_BY_TYPE(ICL_WGMMA_REGISTER_A, 128, 64, 64, 65, 66, 67, 68, 69)
  } else if constexpr (kN == 192) {
    ICL_BY_TYPE(ICL_WGMMA_REGISTER_A, 192, 96, 96, 97, 98, 99, 100, 101)
  } else {
    ICL_BY_TYPE(ICL_WGMMA_REGISTER_A, 256, 128, 128, 129, 130, 131, 132, 133)
  }
}

// ---- registers ----

// Gives registers of this warpgroup back to the block, or takes them: a producer needs few, so that the consumers can
// have more than a third of the register file each.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace icl
