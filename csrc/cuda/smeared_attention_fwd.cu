// smeared_attention, forward: attention whose keys are mixed with their predecessors while a tile of them goes from
// global to shared memory, through registers: in float32, rounded once. Tiling and roofline: see attention_forward.h.
#include "cuda/attention_forward.h"

namespace icl {

size_t smeared_attention_fwd_workspace(const SmearedAttentionFwd&, int) { return 0; }

cudaError_t launch_smeared_attention_fwd(const SmearedAttentionFwd& p, void*, int, cudaStream_t stream) {
  if (p.batch * p.heads * p.length * p.depth == 0) return cudaSuccess;
  const FrozenAttention call{.out = p.out,
                             .q = p.q,
                             .k = p.k,
                             .v = p.v,
                             .pattern = nullptr,
                             .window = p.window,
                             .rows = nullptr,
                             .variants = 1,
                             .batch = p.batch,
                             .heads = p.heads,
                             .length = p.length,
                             .rows_per_example = p.length,
                             .depth = p.depth,
                             .width = p.depth,
                             .scale = p.scale,
                             .dtype = p.dtype,
                             .num_threads = 0};
  return choose_forward<Keys::kSmeared>({call, p.gate, p.peak, p.log_sum}, stream);
}

}  // namespace icl
