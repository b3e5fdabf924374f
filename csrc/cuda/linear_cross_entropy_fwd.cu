#include "cuda/gpu.h"
#include "ops.h"

namespace icl {

size_t linear_cross_entropy_fwd_workspace(const LinearCrossEntropyFwd&, int) { return 0; }

cudaError_t launch_linear_cross_entropy_fwd(const LinearCrossEntropyFwd&, void*, int, cudaStream_t) { return cudaErrorNotSupported; }

}  // namespace icl
