// The tile kernels on emulated instructions, so that tests run them on any machine.
#define ICL_TILE emulated
#include "cpu/emulated_bfloat16.h"
#include "cpu/amx_tile.h"
#include "cpu/avx512_bf16_tile.h"

namespace icl::emulated {

const Bfloat16Tile avx512_bf16_tile{avx512_bf16_kernel::multiply, 2 * avx512_bf16_kernel::kRows};
const Bfloat16Tile amx_tile{amx_kernel::multiply, amx_kernel::kRows};

int64_t tile_configurations() { return configurations; }

bool tiles_in_use() {
  for (const TileRegister& tile : tiles)
    if (tile.rows || tile.bytes) return true;
  return false;
}

}  // namespace icl::emulated
