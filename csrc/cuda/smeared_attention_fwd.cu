// smeared_attention, forward: attention whose keys are mixed with their predecessors while a tile of them goes from
// global to shared memory, through registers: in float32, rounded once. Tiling and roofline: see attention_forward.h.
//
// On Hopper tiles come by TMA and pass through no registers: there the keys are smeared first, into the workspace, to
// the same numbers, and the kernel of frozen_attention follows. That is one more pass over the keys, a few percent.
#include "cuda/attention_forward.h"
#include "cuda/sm90_launchers.h"

namespace icl {
namespace {

constexpr int kSmearThreads = 256;

FrozenAttention attention_of(const SmearedAttentionFwd& p) {
  return {.out = p.out,
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
}

// A thread takes 16 bytes of a key.
template <typename T>
__global__ void __launch_bounds__(kSmearThreads) smear_kernel(SmearedAttentionFwd p, T* smeared) {
  const int64_t pieces = p.depth / kVectorWidth<T>, index = int64_t{blockIdx.x} * kSmearThreads + threadIdx.x;
  const int64_t row = index / pieces, key = row % p.length;
  if (row >= p.batch * p.heads * p.length) return;
  const float own = key == 0 ? 1.0f : p.gate[row / p.length % p.heads], rest = 1 - own;
  const uint4* keys = static_cast<const uint4*>(p.k);
  const uint4 here_bits = keys[index], before_bits = key == 0 ? uint4{} : keys[index - pieces];
  T here[kVectorWidth<T>], before[kVectorWidth<T>], mixed[kVectorWidth<T>];
  memcpy(static_cast<void*>(here), &here_bits, 16), memcpy(static_cast<void*>(before), &before_bits, 16);
#pragma unroll
  for (int j = 0; j < kVectorWidth<T>; ++j)
    mixed[j] = from_float<T>(fmaf(to_float(here[j]), own, to_float(before[j]) * rest));
  uint4 bits;
  memcpy(&bits, mixed, 16);
  reinterpret_cast<uint4*>(smeared)[index] = bits;
}

template <typename T>
cudaError_t smear(const SmearedAttentionFwd& p, void* smeared, cudaStream_t stream) {
  const int64_t pieces = p.batch * p.heads * p.length * (p.depth / kVectorWidth<T>);
  return launch(smear_kernel<T>, ceil_div(pieces, kSmearThreads), kSmearThreads, 0, stream, p, static_cast<T*>(smeared));
}

}  // namespace

size_t smeared_attention_fwd_workspace(const SmearedAttentionFwd& p, int arch) {
  if (!runs_on_sm90(attention_of(p), arch, frozen_attention_sm90_fits)) return 0;
  return size_t(p.batch * p.heads * p.length * p.depth) * 2;
}

cudaError_t launch_smeared_attention_fwd(const SmearedAttentionFwd& p, void* workspace, int arch, cudaStream_t stream) {
  if (p.batch * p.heads * p.length * p.depth == 0) return cudaSuccess;
  FrozenAttention call = attention_of(p);
  if (!runs_on_sm90(call, arch, frozen_attention_sm90_fits))
    return choose_forward<Keys::kSmeared>({call, p.gate, p.peak, p.log_sum}, stream);
  const cudaError_t status = p.dtype == Dtype::kBFloat16 ? smear<bf16>(p, workspace, stream)
                                                         : smear<fp16>(p, workspace, stream);
  if (status != cudaSuccess) return status;
  call.k = workspace;
  return launch_frozen_attention_sm90(call, {p.peak, p.log_sum}, stream);
}

}  // namespace icl
