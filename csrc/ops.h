// Every host entry point of csrc, CPU and CUDA. Pointers, sizes, strides, stream: no torch, no Python.
//
// CUDA launchers: the stream comes last, empty input returns before the launch, the result is the launch's
// own error code. They never print, exit or synchronise.
#pragma once

#include <cstdint>

#ifdef ICL_CUDA
#include <cuda_runtime_api.h>
#endif

namespace icl {

// out = a * x + y, float32. The smallest whole route from Python to a kernel; `icl-fast info` runs it as a self-test.
void axpy_cpu(float* out,      // [n]
              const float* x,  // [n]
              const float* y,  // [n]
              int64_t n, float a, int num_threads);

#ifdef ICL_CUDA
cudaError_t launch_axpy(float* out,      // [n]
                        const float* x,  // [n]
                        const float* y,  // [n]
                        int64_t n, float a, cudaStream_t stream);
#endif

}  // namespace icl
