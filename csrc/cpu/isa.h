// Which instruction set the CPU kernels use: the best one this machine has, or another that tests ask for.
//
// Kernels are compiled for an Isa. The sets with matrix units, AVX512-BF16 and AMX, run those of AVX-512 with a tile
// kernel (bfloat16_tile.h) for the products of bfloat16.
#pragma once

#include <string>
#include <vector>

namespace icl {

enum class Isa { baseline, avx2, avx512 };

Isa current_isa();
std::string current_isa_name();
std::vector<std::string> isa_names();     // of this machine, best last
std::vector<std::string> emulated_names();  // of the sets that any machine can run, slowly, for tests
bool set_isa(const std::string& name);    // false if this machine does not have it

}  // namespace icl

// Call `function` of the namespace compiled for the current instruction set.
#if defined(__x86_64__)
#define ICL_DISPATCH(function, ...)                                \
  (::icl::current_isa() == ::icl::Isa::avx512 ? avx512::function(__VA_ARGS__) \
   : ::icl::current_isa() == ::icl::Isa::avx2 ? avx2::function(__VA_ARGS__)   \
                                              : baseline::function(__VA_ARGS__))
#define ICL_FOR_EACH_ISA(declaration)  \
  namespace baseline { declaration; }  \
  namespace avx2 { declaration; }      \
  namespace avx512 { declaration; }
#else
#define ICL_DISPATCH(function, ...) baseline::function(__VA_ARGS__)
#define ICL_FOR_EACH_ISA(declaration) \
  namespace baseline { declaration; }
#endif
