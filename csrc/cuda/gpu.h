// The only header that kernels include and that knows which compiler builds them. Kernels launch through
// ICL_LAUNCH, so that the same .cu can later be built by a plain C++ compiler for tests.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define ICL_LAUNCH(kernel, grid, block, smem, stream, ...) kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)
