// gated_difference: csrc/activations.h, element by element.
//
// Bandwidth: 2 A + 2 arrays of [N, M] are read and A written, once; threads as in activation_difference.cu.
#include "cuda/activation_math.h"
#include "cuda/elements.h"

namespace icl {
namespace {

constexpr int kThreads = 256;

template <typename Kind, int kCount, typename T>
__global__ void __launch_bounds__(kThreads) gated_difference_kernel(T* out,                 // [variants, size]
                                                                    const T* gate,          // [size]
                                                                    const T* up,            // [size]
                                                                    const T* gate_removed,  // [variants, size]
                                                                    const T* up_removed,    // [variants, size]
                                                                    int64_t variants, int64_t size) {
  using At = typename Kind::template At<float>;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  if (first >= size) return;
  const Elements<T, kCount> own = load_elements<kCount>(gate + first), ups = load_elements<kCount>(up + first);
  At gates[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) gates[i] = At::at(to_float(own.at[i]), DeviceMath{});
  for (int64_t a = 0; a < variants; ++a) {
    const int64_t at = a * size + first;
    Elements<T, kCount> elements = load_elements<kCount>(gate_removed + at);
    const Elements<T, kCount> changes = load_elements<kCount>(up_removed + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      elements.at[i] = from_float<T>(gated_difference(gates[i], to_float(ups.at[i]), to_float(elements.at[i]),
                                                      to_float(changes.at[i]), DeviceMath{}));
    store_elements(out + at, elements);
  }
}

template <typename Kind, int kCount, typename T>
cudaError_t launch_with(const GatedDifference& p, T, cudaStream_t stream) {
  const int64_t size = p.n * p.m;
  return launch(gated_difference_kernel<Kind, kCount, T>, ceil_div(size, kThreads * kCount), kThreads, 0, stream,
                static_cast<T*>(p.out), static_cast<const T*>(p.gate), static_cast<const T*>(p.up),
                static_cast<const T*>(p.gate_removed), static_cast<const T*>(p.up_removed), p.a, size);
}

}  // namespace

size_t gated_difference_workspace(const GatedDifference&, int) { return 0; }

cudaError_t launch_gated_difference(const GatedDifference& p, void*, int, cudaStream_t stream) {
  if (p.a == 0) return cudaSuccess;
  return with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = p.n * p.m;
    bool wide = true;
    for (const void* data : {static_cast<const void*>(p.out), p.gate, p.up, p.gate_removed, p.up_removed})
      wide = wide && vectors_fit(static_cast<const T*>(data), size);
    return with_activation(p.activation, [&](auto kind) {
      using Kind = decltype(kind);
      return wide ? launch_with<Kind, kVectorWidth<T>>(p, zero, stream) : launch_with<Kind, 1>(p, zero, stream);
    });
  });
}

}  // namespace icl
