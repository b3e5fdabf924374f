// The functions of csrc/ptx/hardware/sm90.h, which says what they do, on the emulator. The last parameter is the place
// in the kernel, for reports.
#pragma once

#include <cuda.h>  // CUtensorMap

#include <algorithm>
#include <type_traits>

#include "cuda/numbers.h"

namespace icl {

inline uint32_t shared_address(const void* p) { return emu::shared_offset(p); }

// ---- mbarriers ----

inline void mbarrier_init(uint64_t* bar, int arrivals, emu::Loc where = emu::Loc::current()) {
  emu::mbarrier_init(bar, arrivals, where);
}

inline void mbarrier_init_fence(emu::Loc where = emu::Loc::current()) { emu::fence_mbarrier_init(where); }

inline void mbarrier_arrive(uint64_t* bar, emu::Loc where = emu::Loc::current()) { emu::mbarrier_arrive(bar, where); }

inline void mbarrier_arrive_expect(uint64_t* bar, int bytes, emu::Loc where = emu::Loc::current()) {
  emu::mbarrier_arrive_expect_tx(bar, bytes, where);
}

inline void mbarrier_wait(uint64_t* bar, int parity, emu::Loc where = emu::Loc::current()) {
  emu::mbarrier_wait(bar, parity, where);
}

// ---- TMA ----

template <typename T, int kRank>
inline cudaError_t make_tensor_map(CUtensorMap* map, const void* data, const int64_t (&dims)[kRank],
                                   const int64_t (&strides)[kRank - 1], const int (&box)[kRank]) {
  static_assert(sizeof(T) == 2);
  constexpr int kSwizzleBytes = 128;
  uint64_t sizes[kRank], pitches[kRank - 1];
  uint32_t boxes[kRank];
  std::copy_n(dims, kRank, sizes);
  std::copy_n(strides, kRank - 1, pitches);
  std::copy_n(box, kRank, boxes);
  const int refused = emu::tensor_map(map, data, sizeof(T), kRank, sizes, pitches, boxes, kSwizzleBytes);
  return refused ? cudaErrorInvalidValue : cudaSuccess;
}

inline void tma_load(void* to, const CUtensorMap& map, uint64_t* full, int x, int y,
                     emu::Loc where = emu::Loc::current()) {
  const int at[2] = {x, y};
  emu::tma_load(to, &map, full, 2, at, where);
}

inline void tma_load(void* to, const CUtensorMap& map, uint64_t* full, int x, int y, int z,
                     emu::Loc where = emu::Loc::current()) {
  const int at[3] = {x, y, z};
  emu::tma_load(to, &map, full, 3, at, where);
}

// ---- wgmma ----

inline void wgmma_fence(emu::Loc where = emu::Loc::current()) { emu::wgmma_fence(where); }

inline void wgmma_commit(emu::Loc where = emu::Loc::current()) { emu::wgmma_commit(where); }

template <int kCount>
inline void pin(float (&)[kCount]) {}

template <int kKeep>
inline void wgmma_wait(emu::Loc where = emu::Loc::current()) {
  emu::wgmma_wait(kKeep, where);
}

template <int kKeep, int kCount>
inline void wgmma_wait(float (&)[kCount], emu::Loc where = emu::Loc::current()) {
  emu::wgmma_wait(kKeep, where);
}

template <typename T, int kN>
inline void wgmma(float (&d)[kN / 2], uint64_t a_tile, uint64_t b_tile, bool accumulate,
                  emu::Loc where = emu::Loc::current()) {
  static_assert(kN == 64 || kN == 128 || kN == 192 || kN == 256);
  emu::wgmma(d, kN, std::is_same_v<T, bf16>, a_tile, b_tile, accumulate, false, false, where);
}

template <typename T, int kN>
inline void wgmma_register_a(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_tile, bool accumulate,
                             emu::Loc where = emu::Loc::current()) {
  static_assert(kN == 64 || kN == 128 || kN == 192 || kN == 256);
  emu::wgmma_register_a(d, kN, std::is_same_v<T, bf16>, a, b_tile, accumulate, true, where);
}

// ---- registers ----

template <int kRegisters>
inline void give_registers(emu::Loc where = emu::Loc::current()) {
  emu::set_max_registers(kRegisters, false, where);
}

template <int kRegisters>
inline void take_registers(emu::Loc where = emu::Loc::current()) {
  emu::set_max_registers(kRegisters, true, where);
}

}  // namespace icl
