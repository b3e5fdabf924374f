// The functions of csrc/ptx/hardware/sm80.h, which says what they do, on the emulator. The last parameter is the place
// in the kernel, for reports.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/numbers.h"

namespace icl {

template <typename T>
EMU_UNCHECKED inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    emu::Loc where = emu::Loc::current()) {
  struct {
    uint32_t a[4], b[2];
  } own{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* lanes = emu::exchange(~0u, &own, sizeof own, emu::kTagUser, false, where);
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
}

// Apart, because the exchanged table is the emulator's memory and what the pointer points to is the kernel's.
EMU_UNCHECKED inline const void* pointer_of_lane(const unsigned char* lanes, int lane) {
  const void* pointer;
  memcpy(&pointer, lanes + 64 * lane, sizeof pointer);
  return pointer;
}

template <bool kTransposed>
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emu::Loc where = emu::Loc::current()) {
  const unsigned char* lanes = emu::exchange(~0u, &row, sizeof row, emu::kTagUser + 1, false, where);
  const int lane = emu::current->lane;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int i = kTransposed ? lane % 4 * 2 + j : lane / 4, column = kTransposed ? lane / 4 : lane % 4 * 2 + j;
      pair[j] = static_cast<const uint16_t*>(pointer_of_lane(lanes, m * 8 + i))[column];
    }
    r[m] = pair[0] | uint32_t(pair[1]) << 16;
  }
}

inline void named_barrier_sync(int id, int threads, emu::Loc where = emu::Loc::current()) {
  emu::named_barrier_sync(id, threads, where);
}

inline void cp_async_16(void* to, const void* from, int bytes, emu::Loc where = emu::Loc::current()) {
  emu::cp_async(to, from, 16, bytes, where);
}

inline void cp_async_commit(emu::Loc where = emu::Loc::current()) { emu::cp_async_commit(where); }

template <int kKeep>
inline void cp_async_wait(emu::Loc where = emu::Loc::current()) {
  emu::cp_async_wait(kKeep, where);
}

inline float exp2_approx(float x) { return emu::exp2_approx(x); }

}  // namespace icl
