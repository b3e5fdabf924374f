// vdpbf16ps and the tile registers with tdpbf16ps in plain C++, under the names of their intrinsics, as Intel's manual
// (volume 2) writes them out: subnormal numbers count as zero on the way in and on the way out, everything else is
// rounded to nearest. Slow; for tests.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace icl::emulated {

inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

inline float widened(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return flushed(f);
}

inline float multiplied_in(float sum, uint16_t x, uint16_t y) {
  return flushed(std::fma(widened(x), widened(y), flushed(sum)));
}

struct __m512 {
  float at[16];
};
struct __m512i {
  uint16_t at[32];
};
using __m512bh = __m512i;

inline __m512 _mm512_setzero_ps() { return {}; }

inline __m512 _mm512_loadu_ps(const float* p) {
  __m512 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void _mm512_storeu_ps(float* p, const __m512& v) { std::memcpy(p, &v, sizeof v); }

inline __m512 _mm512_add_ps(__m512 x, const __m512& y) {
  for (int i = 0; i < 16; ++i) x.at[i] += y.at[i];
  return x;
}

inline __m512i _mm512_loadu_si512(const void* p) {
  __m512i v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline __m512i _mm512_set1_epi32(int32_t x) {
  __m512i v;
  for (int i = 0; i < 16; ++i) std::memcpy(v.at + 2 * i, &x, sizeof x);
  return v;
}

inline __m512 _mm512_dpbf16_ps(__m512 sums, const __m512bh& x, const __m512bh& y) {
  for (int i = 0; i < 16; ++i)
    for (int odd = 1; odd >= 0; --odd)
      sums.at[i] = multiplied_in(sums.at[i], x.at[2 * i + odd], y.at[2 * i + odd]);
  return sums;
}

struct TileRegister {
  int rows, bytes;
  uint8_t at[16][64];
};
inline thread_local TileRegister tiles[8];
inline thread_local int64_t configurations = 0;  // so far

inline void _tile_loadconfig(const void* palette) {
  ++configurations;
  const uint8_t* config = static_cast<const uint8_t*>(palette);
  for (int i = 0; i < 8; ++i) {
    uint16_t bytes;
    std::memcpy(&bytes, config + 16 + 2 * i, sizeof bytes);
    tiles[i] = {config[48 + i], bytes, {}};
  }
}

inline void _tile_release() {
  for (TileRegister& tile : tiles) tile = {};
}

inline void _tile_zero(int to) { std::memset(tiles[to].at, 0, sizeof tiles[to].at); }

inline void _tile_loadd(int to, const void* from, int64_t step) {
  _tile_zero(to);
  for (int row = 0; row < tiles[to].rows; ++row)
    std::memcpy(tiles[to].at[row], static_cast<const uint8_t*>(from) + row * step, size_t(tiles[to].bytes));
}

inline void _tile_stored(int from, void* to, int64_t step) {
  for (int row = 0; row < tiles[from].rows; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * step, tiles[from].at[row], size_t(tiles[from].bytes));
}

inline void _tile_dpbf16ps(int to, int left, int right) {
  for (int row = 0; row < tiles[to].rows; ++row) {
    float sums[16], even[16] = {}, odd[16] = {};
    uint16_t a[32], b[32];
    std::memcpy(sums, tiles[to].at[row], sizeof sums);
    std::memcpy(a, tiles[left].at[row], sizeof a);
    for (int pair = 0; pair < tiles[right].rows; ++pair) {
      std::memcpy(b, tiles[right].at[pair], sizeof b);
      for (int i = 0; i < 16; ++i) {
        even[i] = multiplied_in(even[i], a[2 * pair], b[2 * i]);
        odd[i] = multiplied_in(odd[i], a[2 * pair + 1], b[2 * i + 1]);
      }
    }
    for (int i = 0; i < 16; ++i) sums[i] = flushed(flushed(sums[i]) + flushed(even[i] + odd[i]));
    std::memcpy(tiles[to].at[row], sums, sizeof sums);
  }
}

}  // namespace icl::emulated
