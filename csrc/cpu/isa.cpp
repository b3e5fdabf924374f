#include "cpu/isa.h"

namespace icl {

Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

namespace {
Isa current = best_isa();
}

Isa current_isa() { return current; }

bool set_isa(Isa isa) {
  if (isa > best_isa()) return false;
  current = isa;
  return true;
}

}  // namespace icl
