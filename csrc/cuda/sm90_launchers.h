// The launchers of Hopper's own kernels. Those of ops.h call them on arch 90 where they fit, else run the kernels of
// every GPU since sm_80. They are compiled for sm_90a alone, if at all.
#pragma once

#include "ops.h"

namespace icl {

ICL_MAY_LACK bool linear_cross_entropy_fwd_sm90_fits(const LinearCrossEntropyFwd& p);
ICL_MAY_LACK size_t linear_cross_entropy_fwd_sm90_workspace(const LinearCrossEntropyFwd& p);
ICL_MAY_LACK cudaError_t launch_linear_cross_entropy_fwd_sm90(const LinearCrossEntropyFwd& p, void* workspace,
                                                              cudaStream_t stream);

ICL_MAY_LACK bool cross_entropy_difference_sm90_fits(const CrossEntropyDifference& p);
ICL_MAY_LACK size_t cross_entropy_difference_sm90_workspace(const CrossEntropyDifference& p);
ICL_MAY_LACK cudaError_t launch_cross_entropy_difference_sm90(const CrossEntropyDifference& p, void* workspace,
                                                              cudaStream_t stream);

// head_ablation.h has its launcher: it is one of several kernels of the op.
ICL_MAY_LACK bool head_ablation_cross_entropy_sm90_fits(const HeadAblation& p);
ICL_MAY_LACK int64_t head_ablation_cross_entropy_sm90_splits(const HeadAblation& p, int64_t columns /* of a chunk */);

ICL_MAY_LACK bool frozen_attention_sm90_fits(const FrozenAttention& p);
// What a backward needs of every row's scores; null: not wanted.
struct RowSums {
  float* peak;     // [batch, heads, length], the largest
  float* log_sum;  // [batch, heads, length], log of the sum of exp(score - peak)
};
ICL_MAY_LACK cudaError_t launch_frozen_attention_sm90(const FrozenAttention& p, const RowSums& row_sums,
                                                      cudaStream_t stream);

// Whether Hopper's own kernel is there and takes this call.
template <typename P>
bool runs_on_sm90(const P& p, int arch, bool (*fits)(const P&)) {
  return arch == 90 && fits && fits(p);
}

}  // namespace icl
