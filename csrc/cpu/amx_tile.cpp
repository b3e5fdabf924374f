// Compiled for AMX; isa.h says who calls it.
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define ICL_TILE amx
#include "cpu/amx_tile.h"

namespace icl::amx {

const Bfloat16Tile tile{amx_kernel::multiply, amx_kernel::kRows};

// Linux gives the tile registers to a process that asks; its threads have them too.
bool permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace icl::amx
