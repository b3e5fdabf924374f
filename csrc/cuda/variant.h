// Of the builds of bench/gpu_tune.py (ICL_VARIANT) alone.
#pragma once

#include <cstddef>

namespace icl {

inline size_t most_shared = 0;  // bytes of dynamic shared memory, of any launch so far

}  // namespace icl
