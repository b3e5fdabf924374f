// The tile kernel of tdpbf16ps. Included where that is an instruction, and where it is emulated.
//
// A block of 32 x 32 is four tile registers of sums; two hold rows of `a`, two columns of `b`, so that four products
// go with four loads. The registers are configured at the start of a call and given back at its end: the system saves
// them at every switch of a thread that has them.
#pragma once

#include <cstdint>

#include "cpu/bfloat16_tile.h"

namespace icl::ICL_TILE {
namespace amx_kernel {

constexpr int kTileRows = 16, kTileBytes = 64;
constexpr int64_t kRows = 2 * kTileRows;

struct alignas(64) Palette {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Sums 0..3, of the upper rows 0 and 1; a 4 and 5; b 6 and 7
  Palette(int upper, int lower) {
    const int of[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
    for (int i = 0; i < 8; ++i)
      if (of[i] > 0) rows[i] = uint8_t(of[i]), row_bytes[i] = kTileBytes;
  }
};

// 17 to 32 rows against a panel
inline void multiply_both(const uint16_t* a, int64_t a_step, const uint16_t* panel, int64_t depth, float* out,
                          int64_t out_step, bool add) {
  float* lower_out = out + kTileRows * out_step;
  const int64_t out_bytes = out_step * 4, a_bytes = a_step * 2, panel_bytes = kPanelColumns * 4;
  if (add) {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(1, out + 16, out_bytes);
    _tile_loadd(2, lower_out, out_bytes);
    _tile_loadd(3, lower_out + 16, out_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += kDepthStep) {
    const uint16_t* b = panel + k * kPanelColumns;
    _tile_loadd(6, b, panel_bytes);
    _tile_loadd(4, a + k, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kPanelColumns, panel_bytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + kTileRows * a_step + k, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + 16, out_bytes);
  _tile_stored(2, lower_out, out_bytes);
  _tile_stored(3, lower_out + 16, out_bytes);
}

// 1 to 16 rows against a panel
inline void multiply_upper(const uint16_t* a, int64_t a_step, const uint16_t* panel, int64_t depth, float* out,
                           int64_t out_step, bool add) {
  const int64_t out_bytes = out_step * 4, a_bytes = a_step * 2, panel_bytes = kPanelColumns * 4;
  if (add) {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(1, out + 16, out_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t k = 0; k < depth; k += kDepthStep) {
    const uint16_t* b = panel + k * kPanelColumns;
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, b, panel_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kPanelColumns, panel_bytes);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + 16, out_bytes);
}

inline void multiply(const uint16_t* a, int64_t a_step, int64_t rows, const uint16_t* panels, int64_t count,
                     int64_t depth, float* out, int64_t out_step, bool add) {
  int64_t configured = 0;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t here = rows - row < kRows ? rows - row : kRows;
    if (here != configured) {
      const Palette palette(here < kTileRows ? int(here) : kTileRows, here < kTileRows ? 0 : int(here) - kTileRows);
      _tile_loadconfig(&palette);
      configured = here;
    }
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t* panel = panels + i * depth * kPanelColumns;
      float* to = out + row * out_step + i * kPanelColumns;
      if (here > kTileRows) {
        multiply_both(a + row * a_step, a_step, panel, depth, to, out_step, add);
      } else {
        multiply_upper(a + row * a_step, a_step, panel, depth, to, out_step, add);
      }
    }
  }
  if (configured) _tile_release();
}

}  // namespace amx_kernel
}  // namespace icl::ICL_TILE
