// How many threads a kernel takes, and which of them this one is.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdint>

#include "cpu/integers.h"
#include "cpu/simd.h"

namespace icl::ICL_ISA {

// Threads for `units` of work with that many multiply-adds in all. Waking one costs more than a small call takes.
ICL_INLINE int64_t useful_threads(int64_t threads, int64_t units, int64_t work) {
  constexpr int64_t kWorthAThread = 1 << 18;
  return max(min(min(threads, units), work / kWorthAThread), 1);
}

// This thread's, of thread_count() of its parallel region
ICL_INLINE int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

ICL_INLINE int thread_count() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

}  // namespace icl::ICL_ISA
