// Which instruction set the CPU kernels use: the best one this machine has, or a lesser one that tests ask for.
#pragma once

namespace icl {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

Isa best_isa();
Isa current_isa();
bool set_isa(Isa isa);  // false if this machine does not have it

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
