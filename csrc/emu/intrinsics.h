// CUDA's built-in variables and device functions, under their CUDA names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#define threadIdx (emu::current->thread_index)
#define blockIdx (emu::current->block_index)
#define blockDim (emu::current->block_dim)
#define gridDim (emu::current->grid_dim)
static constexpr int warpSize = 32;

#define EMU_LOC emu::Loc loc = emu::Loc::current()

inline void __syncthreads(EMU_LOC) { emu::barrier(loc); }
inline int __syncthreads_or(int p, EMU_LOC) { return emu::barrier_reduce(p, emu::Reduce::kOr, loc); }
inline int __syncthreads_and(int p, EMU_LOC) { return emu::barrier_reduce(p, emu::Reduce::kAnd, loc); }
inline int __syncthreads_count(int p, EMU_LOC) { return emu::barrier_reduce(p, emu::Reduce::kCount, loc); }
inline void __syncwarp(unsigned mask = ~0u, EMU_LOC) {
  emu::exchange(mask, nullptr, 0, emu::kTagSyncwarp, true, loc);
}
inline void __threadfence(EMU_LOC) { emu::thread_fence(loc); }
inline void __threadfence_block() {}

namespace emu {

template <class T>
EMU_UNCHECKED T shuffle(unsigned mask, T v, int source, Tag tag, Loc loc) {
  static_assert(sizeof(T) <= 8, "CUDA shuffles at most 8 bytes");
  const unsigned char* slots = exchange(mask, &v, sizeof v, tag, false, loc);
  T result;
  std::memcpy(&result, slots + 64 * source, sizeof result);
  return result;
}

// One atomic read-modify-write. Fibers switch only inside the emulator, so nothing comes in between.
template <class T, class F>
EMU_UNCHECKED T read_modify_write(T* p, F f, Loc loc) {
  atomic_access(p, sizeof(T), loc);
  T old = *p;
  *p = f(old);
  return old;
}

}  // namespace emu

template <class T>
EMU_UNCHECKED T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMU_LOC) {
  const int lane = emu::current->lane;
  return emu::shuffle(mask, v, (lane & ~(width - 1)) | (source & (width - 1)), emu::kTagShfl, loc);
}
template <class T>
EMU_UNCHECKED T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMU_LOC) {
  const int lane = emu::current->lane, source = lane ^ bits;
  const bool beyond = (source & ~(width - 1)) > (lane & ~(width - 1));  // of the lane's segment: its own value
  return emu::shuffle(mask, v, beyond ? lane : source, emu::kTagShflXor, loc);
}
template <class T>
EMU_UNCHECKED T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_LOC) {
  const int lane = emu::current->lane, source = lane + static_cast<int>(delta);
  const bool beyond = (source & ~(width - 1)) != (lane & ~(width - 1));
  return emu::shuffle(mask, v, beyond ? lane : source, emu::kTagShflDown, loc);
}
template <class T>
EMU_UNCHECKED T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_LOC) {
  const int lane = emu::current->lane, source = lane - static_cast<int>(delta);
  const bool beyond = source < (lane & ~(width - 1));
  return emu::shuffle(mask, v, beyond ? lane : source, emu::kTagShflUp, loc);
}
EMU_UNCHECKED inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_LOC) {
  const unsigned char* slots = emu::exchange(mask, &predicate, sizeof predicate, emu::kTagVote, false, loc);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    int other;
    std::memcpy(&other, slots + 64 * lane, sizeof other);
    if (mask >> lane & 1 && other) result |= 1u << lane;
  }
  return result;
}
inline int __any_sync(unsigned mask, int predicate, EMU_LOC) { return __ballot_sync(mask, predicate, loc) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMU_LOC) { return __ballot_sync(mask, !predicate, loc) == 0; }

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v, EMU_LOC) {
  return emu::read_modify_write(p, [=](T old) { return static_cast<T>(old + v); }, loc);
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v, EMU_LOC) {
  return emu::read_modify_write(p, [=](T old) { return std::max(old, v); }, loc);
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v, EMU_LOC) {
  return emu::read_modify_write(p, [=](T old) { return std::min(old, v); }, loc);
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v, EMU_LOC) {
  return emu::read_modify_write(p, [=](T) { return v; }, loc);
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v, EMU_LOC) {
  return emu::read_modify_write(p, [=](T old) { return old == compare ? v : old; }, loc);
}

template <class T>
T __ldg(const T* p) {
  return *p;
}

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return std::min(std::max(x, 0.0f), 1.0f); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1) << (31 - bit);
  return result;
}
EMU_UNCHECKED inline float __int_as_float(int x) {
  float result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}
EMU_UNCHECKED inline int __float_as_int(float x) {
  int result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}
EMU_UNCHECKED inline float __uint_as_float(unsigned x) { return __int_as_float(static_cast<int>(x)); }
EMU_UNCHECKED inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(__float_as_int(x)); }

using std::max;
using std::min;
