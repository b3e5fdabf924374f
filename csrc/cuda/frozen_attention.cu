#include "cuda/gpu.h"
#include "cuda/sm90.h"
#include "ops.h"

namespace icl {

size_t frozen_attention_workspace(const FrozenAttention&, int) { return 0; }

cudaError_t launch_frozen_attention(const FrozenAttention& p, void*, int arch, cudaStream_t stream) {
#ifdef ICL_SM90
  if (arch == 90 && frozen_attention_sm90_fits(p)) return launch_frozen_attention_sm90(p, stream);
#endif
  return cudaErrorNotSupported;
}

}  // namespace icl
