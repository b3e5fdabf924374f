#include <algorithm>

#include "cuda/launch.h"
#include "ops.h"

namespace icl {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;  // a grid-stride loop covers the rest, so any n fits in the grid's 32 bits

__global__ void axpy_kernel(float* out, const float* x, const float* y, int64_t n, float a) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) out[i] = a * x[i] + y[i];
}

}  // namespace

cudaError_t launch_axpy(float* out, const float* x, const float* y, int64_t n, float a, cudaStream_t stream) {
  if (n <= 0) return cudaSuccess;
  return launch(axpy_kernel, std::min(ceil_div(n, kThreads), kMaxBlocks), kThreads, 0, stream, out, x, y, n, a);
}

}  // namespace icl
