// Products of bfloat16 matrices with float32 sums, on the matrix units of the processor: what every op's epilogue is
// written over. Two instructions do it: vdpbf16ps of AVX512-BF16 and tdpbf16ps of AMX. Each is emulated in plain C++
// too, so that tests run the same kernels on any machine.
//
// Both take the same operands. `a`: rows as they lie in memory. `b`: panels of kPanelColumns columns, in which two
// consecutive elements of a column lie side by side: [depth / 2][kPanelColumns][2], the transpose of a matrix whose
// elements are pairs. Sums are kept in float32 from the first to the last element of depth.
#pragma once

#include <cstdint>

namespace icl {

constexpr int64_t kPanelColumns = 32;
constexpr int64_t kDepthStep = 32;  // depth is a multiple of it: callers pad with zeros, on both sides
constexpr int64_t kMostTileRows = 32;

struct Bfloat16Tile {
  // out [rows][count * kPanelColumns] = a [rows][depth] @ b, or += with `add`. Rows of a and out are a_step and
  // out_step elements apart.
  void (*multiply)(const uint16_t* a, int64_t a_step, int64_t rows,
                   const uint16_t* panels /* [count][depth / 2][kPanelColumns][2] */, int64_t count, int64_t depth,
                   float* out, int64_t out_step, bool add);
  int64_t rows;  // at a time, for the best rate; at most kMostTileRows
};

// That of the instruction set in use; null: it has none, and products are those of float32.
const Bfloat16Tile* bfloat16_tile();

namespace avx512_bf16 {
extern const Bfloat16Tile tile;
}
namespace amx {
extern const Bfloat16Tile tile;
bool permitted();  // asks the operating system for the tile registers, once; false: it has none
}
namespace emulated {
extern const Bfloat16Tile avx512_bf16_tile, amx_tile;
int64_t tile_configurations();  // of the tile registers of this thread, so far
bool tiles_in_use();            // whether they are configured
}

}  // namespace icl
