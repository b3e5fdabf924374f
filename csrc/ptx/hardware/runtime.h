// CUDA's runtime and the two pieces of its language that only nvcc parses. Beside csrc/emu/hardware/runtime.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Dynamic shared memory of a kernel, as an array of bytes; aligned to what a swizzled tile needs.
#define ICL_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

#define ICL_LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
