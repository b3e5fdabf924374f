// What csrc/activations.h needs on vectors.
#pragma once

#include <cstdint>

#include "activations.h"
#include "cpu/rows.h"
#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

constexpr int64_t kChunk = 1024;  // elements that a thread takes at once; what it keeps of them is 16 KiB at most

struct VectorMath {
  ICL_INLINE vf exp(vf x) const { return exp_nonpositive(x); }

  ICL_INLINE vf expm1(vf x) const { return expm1_nonpositive(x); }

  ICL_INLINE bool any(vi condition) const {
    int64_t words[W / 2], some = 0;
    std::memcpy(words, &condition, sizeof words);
    for (int i = 0; i < W / 2; ++i) some |= words[i];
    return some != 0;
  }
};

}  // namespace icl::ICL_ISA
