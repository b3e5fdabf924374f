// pack_weight: a weight as panels of bfloat16, once, for the many products that follow.
#include <cstdint>

#include "cpu/bfloat16_pack.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {

void pack_weight(const PackWeight& p) {
  const int64_t panels = ceil_div(p.m, kPanelColumns), panel_size = padded_depth(p.c) * kPanelColumns;
  const int64_t threads = useful_threads(p.num_threads, panels, p.m * p.c);
#pragma omp parallel for num_threads(int(threads)) schedule(static)
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t column = i * kPanelColumns;
    pack_pairs(p.weight + column * p.c, p.c, min(kPanelColumns, p.m - column), p.c, p.packed + i * panel_size);
  }
}

}  // namespace icl::ICL_ISA
