// Hopper's own kernels. The launchers of ops.h run them on arch 90 where they fit, else those of every GPU since sm_80.
// They are compiled for sm_90a alone, if at all: then ICL_SM90 is defined.
#pragma once

#include "cuda/gpu.h"
#include "ops.h"

namespace icl {

bool linear_cross_entropy_fwd_sm90_fits(const LinearCrossEntropyFwd& p);
size_t linear_cross_entropy_fwd_sm90_workspace(const LinearCrossEntropyFwd& p);
cudaError_t launch_linear_cross_entropy_fwd_sm90(const LinearCrossEntropyFwd& p, void* workspace, cudaStream_t stream);

bool frozen_attention_sm90_fits(const FrozenAttention& p);
cudaError_t launch_frozen_attention_sm90(const FrozenAttention& p, cudaStream_t stream);

}  // namespace icl
