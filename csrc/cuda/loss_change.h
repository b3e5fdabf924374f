// What cross_entropy_difference keeps of a row while its columns go by, in the kernel of every GPU and in Hopper's own,
// and the kernel that makes differences of it.
#pragma once

#include "cuda/log_sum_exp.h"

namespace icl {

// What a variant does to the partition function of a row, in some of the columns, with weights exp(l - m): see
// cross_entropy_difference.cu.
struct Change {
  float grown = 0;         // D
  float sum = 0;           // S'
  float most = -INFINITY;  // of y

  // The same relative to another m.
  __device__ __forceinline__ Change scaled(float factor) const { return {grown * factor, sum * factor, most}; }
};

__device__ __forceinline__ Change merge(Change a, Change b) {
  return {a.grown + b.grown, a.sum + b.sum, fmaxf(a.most, b.most)};
}

// What kLanes neighbouring lanes have found, together; every one of them gets it.
template <int kLanes>
__device__ __forceinline__ Change merge_lanes(Change own) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2)
    own = merge(own, {__shfl_xor_sync(kFullWarp, own.grown, mask), __shfl_xor_sync(kFullWarp, own.sum, mask),
                      __shfl_xor_sync(kFullWarp, own.most, mask)});
  return own;
}

// exp(y) = s q + s, with y = n log(2) + r, s = 2^n and q = exp(r) - 1. exp(y) - 1 = s q + (s - 1): nothing cancels, and
// where n is 0 its error is q's.
struct Exp {
  float q, s;

  __device__ __forceinline__ explicit Exp(float y) {
    constexpr float kRound = 12582912, kLog2 = 0.693147181f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float n = fmaf(y, kLog2E, kRound) - kRound, r = fmaf(-n, kLog2, y);
    // least relative error of a polynomial of this degree for |r| <= log(2) / 2: 1.3e-8
    q = fmaf(fmaf(fmaf(fmaf(0.0013882507f, r, 0.008366596f), r, 0.0416672f), r, 0.16666543f), r, 0.49999997f);
    q = fmaf(q, r * r, r);
    s = exp2_approx(n);
  }
};

// What the parts of a row's columns leave to the second kernel.
struct Parts {
  Partials base;
  Change* changes;   // [parts][A][N], relative to the largest logit of the part
  float* at_target;  // [A][N], y

  Parts(Workspace& workspace, const CrossEntropyDifference& p, int64_t parts)
      : base(workspace, p.n, parts), changes(workspace.take<Change>(parts * p.a * p.n)),
        at_target(workspace.take<float>(p.a * p.n)) {}
};

// Makes base and difference of parts that a kernel of sm_80 or of Hopper has filled.
ICL_MAY_LACK cudaError_t finish_cross_entropy_difference(const CrossEntropyDifference& p, const Parts& parts,
                                                         cudaStream_t stream);

}  // namespace icl
