#include "cpu/isa.h"

#if defined(_WIN32)
#include <windows.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/bfloat16_tile.h"

namespace icl {

namespace {

struct Level {
  const char* name;
  Isa isa;
  const Bfloat16Tile* tile;
};

#if defined(ICL_MATRIX_UNITS)
bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBfloat16) && (d & kTiles) && amx::permitted();
}
#endif

// Of this machine, best last
std::vector<Level> found_levels() {
  std::vector<Level> found{{"baseline", Isa::baseline, nullptr}};
#if defined(_WIN32) && defined(__x86_64__)
  // clang's own test is in a library that is not linked there; Windows does not tell of all parts of AVX-512
  if (IsProcessorFeaturePresent(PF_AVX2_INSTRUCTIONS_AVAILABLE)) found.push_back({"avx2", Isa::avx2, nullptr});
#elif defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
  found.push_back({"avx2", Isa::avx2, nullptr});
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return found;
  found.push_back({"avx512", Isa::avx512, nullptr});
#if defined(ICL_MATRIX_UNITS)
  if (!__builtin_cpu_supports("avx512bf16")) return found;
  // Intel's vdpbf16ps has half the rate of its float32 products (80 and 160 GFLOP/s of a core, measured where there is
  // AMX), AMD's twice the rate.
  found.insert(found.end() - (__builtin_cpu_is("intel") ? 1 : 0),
               {"avx512_bf16", Isa::avx512, &avx512_bf16::tile});
  if (has_amx()) found.push_back({"amx", Isa::avx512, &amx::tile});
#endif
#endif
  return found;
}

const std::vector<Level>& levels() {
  static const std::vector<Level> found = found_levels();
  return found;
}

Isa best_code() { return levels().back().isa; }

const std::vector<Level>& emulated_levels() {
  static const std::vector<Level> found{{"avx512_bf16_emulated", best_code(), &emulated::avx512_bf16_tile},
                                        {"amx_emulated", best_code(), &emulated::amx_tile}};
  return found;
}

Level current = levels().back();

std::vector<std::string> names(const std::vector<Level>& of) {
  std::vector<std::string> found;
  for (const Level& level : of) found.emplace_back(level.name);
  return found;
}

}  // namespace

Isa current_isa() { return current.isa; }
std::string current_isa_name() { return current.name; }
const Bfloat16Tile* bfloat16_tile() { return current.tile; }
std::vector<std::string> isa_names() { return names(levels()); }
std::vector<std::string> emulated_names() { return names(emulated_levels()); }

bool set_isa(const std::string& name) {
  for (const auto* known : {&levels(), &emulated_levels()})
    for (const Level& level : *known)
      if (name == level.name) {
        current = level;
        return true;
      }
  return false;
}

}  // namespace icl
