#include "cpu/isa.h"

#if defined(_WIN32)
#include <windows.h>
#endif

namespace icl {

Isa best_isa() {
#if defined(_WIN32) && defined(__x86_64__)
  // clang's own test is in a library that is not linked there; Windows does not tell of all parts of AVX-512
  if (IsProcessorFeaturePresent(PF_AVX2_INSTRUCTIONS_AVAILABLE)) return Isa::avx2;
#elif defined(__x86_64__)
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
