// frozen_attention: one attention pattern, applied to the values of many variants. Tiling and roofline: see
// attention_forward.h.
#include "cuda/attention_forward.h"
#include "cuda/sm90_launchers.h"

namespace icl {

size_t frozen_attention_workspace(const FrozenAttention&, int) { return 0; }

cudaError_t launch_frozen_attention(const FrozenAttention& p, void*, int arch, cudaStream_t stream) {
  if (p.variants * p.batch * p.heads * p.rows_per_example * p.width == 0) return cudaSuccess;
  if (runs_on_sm90(p, arch, frozen_attention_sm90_fits)) return launch_frozen_attention_sm90(p, {}, stream);
  const AttentionForward arguments{p, nullptr, nullptr, nullptr};
  return p.pattern ? choose_forward<Keys::kNone>(arguments, stream) : choose_forward<Keys::kPlain>(arguments, stream);
}

}  // namespace icl
