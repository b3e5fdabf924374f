// gelu_difference: csrc/gelu.h, element by element.
//
// Bandwidth: A + 1 arrays of [N, M] are read and A written; a thread holds 16 bytes of u in registers and goes through
// the variants, so that u is read once. 30 to 80 operations for the 4 to 8 bytes of an element: an H200 does 14 float32
// operations for each byte of its memory, so bf16 is about even and float32 waits for memory. Where |du| > 1/2 is rare,
// few warps take the branch that costs twice.
#include "cuda/elements.h"
#include "gelu.h"

namespace icl {
namespace {

constexpr int kThreads = 256;

struct DeviceMath {
  __device__ __forceinline__ float exp(float x) const { return exp2_approx(x * kLog2E); }
  __device__ __forceinline__ float expm1(float x) const { return expm1f(x); }
  __device__ __forceinline__ bool any(bool condition) const { return condition; }
};

template <bool kTanh, int kCount, typename T>
__global__ void __launch_bounds__(kThreads) gelu_difference_kernel(T* out,            // [variants, size]
                                                                   const T* u,        // [size]
                                                                   const T* removed,  // [variants, size]
                                                                   int64_t variants, int64_t size) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  if (first >= size) return;
  const Elements<T, kCount> mine = load_elements<kCount>(u + first);
  for (int64_t a = 0; a < variants; ++a) {
    Elements<T, kCount> elements = load_elements<kCount>(removed + a * size + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      elements.at[i] = from_float<T>(
          gelu_difference<kTanh>(to_float(mine.at[i]), to_float(elements.at[i]), DeviceMath{}));
    store_elements(out + a * size + first, elements);
  }
}

template <bool kTanh, int kCount, typename T>
cudaError_t launch_with(const GeluDifference& p, T, cudaStream_t stream) {
  const int64_t size = p.n * p.m;
  return launch(gelu_difference_kernel<kTanh, kCount, T>, ceil_div(size, kThreads * kCount), kThreads, 0,
                stream, static_cast<T*>(p.out), static_cast<const T*>(p.u), static_cast<const T*>(p.removed), p.a,
                size);
}

}  // namespace

size_t gelu_difference_workspace(const GeluDifference&, int) { return 0; }

cudaError_t launch_gelu_difference(const GeluDifference& p, void*, int, cudaStream_t stream) {
  if (p.a == 0) return cudaSuccess;
  return with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = p.n * p.m;
    const bool wide = vectors_fit(static_cast<const T*>(p.out), size) &&
                      vectors_fit(static_cast<const T*>(p.u), size) &&
                      vectors_fit(static_cast<const T*>(p.removed), size);
    if (p.tanh)
      return wide ? launch_with<true, kVectorWidth<T>>(p, zero, stream) : launch_with<true, 1>(p, zero, stream);
    return wide ? launch_with<false, kVectorWidth<T>>(p, zero, stream) : launch_with<false, 1>(p, zero, stream);
  });
}

}  // namespace icl
