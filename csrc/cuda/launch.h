// What launchers share: the number of multiprocessors, cutting up the workspace, the type behind a Dtype, more shared
// memory than the default.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/numbers.h"
#include "ops.h"
#ifdef ICL_VARIANT
#include "cuda/variant.h"
#endif

namespace icl {

// Multiprocessors of the current device, for deciding how far to split work that has too few tiles.
inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Cuts arrays out of a workspace. On nullptr it only counts, so the same code tells how large a workspace must be.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(size_t(count) * sizeof(T), size_t{256});
    return array;
  }

  size_t size() const { return used_; }

 private:
  uintptr_t base_;
  size_t used_ = 0;
};

// f(x) with an x of the type that `dtype` stands for.
template <typename F>
auto with_type(Dtype dtype, F f) {
#ifdef ICL_VARIANT  // it is timed with nothing else, and the rest would take most of the time to compile
  return f(bf16{});
#endif
  if (dtype == Dtype::kBFloat16) return f(bf16{});
  if (dtype == Dtype::kFloat16) return f(fp16{});
  return f(float{});
}

// Starts a kernel that uses `shared` bytes of dynamic shared memory. No blocks: nothing to do.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
#ifdef ICL_VARIANT
  most_shared = std::max(most_shared, shared);
#endif
  if (shared > 48 * 1024) {  // a kernel has to be allowed more than that
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status != cudaSuccess) return status;
  }
  ICL_LAUNCH(kernel, unsigned(blocks), threads, shared, stream, arguments...);
  return cudaGetLastError();
}

}  // namespace icl
