// Compiled for AVX512-BF16; isa.h says who calls it.
#include <immintrin.h>

#define ICL_TILE avx512_bf16
#include "cpu/avx512_bf16_tile.h"

namespace icl::avx512_bf16 {

const Bfloat16Tile tile{avx512_bf16_kernel::multiply, 2 * avx512_bf16_kernel::kRows};

}  // namespace icl::avx512_bf16
