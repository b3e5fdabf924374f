// activation_difference: csrc/activations.h, element by element.
//
// Bandwidth: A + 1 arrays of [N, M] are read and A written; a thread holds 16 bytes of u in registers, with what all
// variants share, and goes through them, so that u is read once. 10 to 80 operations for the 4 to 8 bytes of an
// element: an H200 does 14 float32 operations for each byte of its memory, so bf16 is about even and float32 waits for memory.
// Where |du| > 1/2 is rare, few warps take the branch of the exact GELU that costs twice.
#include "cuda/activation_math.h"
#include "cuda/elements.h"

namespace icl {
namespace {

constexpr int kThreads = 256;

template <typename Kind, int kCount, typename T>
__global__ void __launch_bounds__(kThreads) activation_difference_kernel(T* out,            // [variants, size]
                                                                         const T* u,        // [size]
                                                                         const T* removed,  // [variants, size]
                                                                         int64_t variants, int64_t size) {
  using At = typename Kind::template At<float>;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  if (first >= size) return;
  const Elements<T, kCount> mine = load_elements<kCount>(u + first);
  At at_u[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) at_u[i] = At::at(to_float(mine.at[i]), DeviceMath{});
  for (int64_t a = 0; a < variants; ++a) {
    Elements<T, kCount> elements = load_elements<kCount>(removed + a * size + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      elements.at[i] = from_float<T>(activation_difference(at_u[i], to_float(elements.at[i]), DeviceMath{}));
    store_elements(out + a * size + first, elements);
  }
}

template <typename Kind, int kCount, typename T>
cudaError_t launch_with(const ActivationDifference& p, T, cudaStream_t stream) {
  const int64_t size = p.n * p.m;
  return launch(activation_difference_kernel<Kind, kCount, T>, ceil_div(size, kThreads * kCount), kThreads, 0, stream,
                static_cast<T*>(p.out), static_cast<const T*>(p.u), static_cast<const T*>(p.removed), p.a, size);
}

}  // namespace

size_t activation_difference_workspace(const ActivationDifference&, int) { return 0; }

cudaError_t launch_activation_difference(const ActivationDifference& p, void*, int, cudaStream_t stream) {
  if (p.a == 0) return cudaSuccess;
  return with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = p.n * p.m;
    const bool wide = vectors_fit(static_cast<const T*>(p.out), size) &&
                      vectors_fit(static_cast<const T*>(p.u), size) &&
                      vectors_fit(static_cast<const T*>(p.removed), size);
    return with_activation(p.activation, [&](auto kind) {
      using Kind = decltype(kind);
      return wide ? launch_with<Kind, kVectorWidth<T>>(p, zero, stream) : launch_with<Kind, 1>(p, zero, stream);
    });
  });
}

}  // namespace icl
