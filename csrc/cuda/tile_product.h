// The product of one tile on Hopper, as its steps of depth come through the ring.
#pragma once

#include "cuda/pipeline.h"
#include "cuda/slab.h"

namespace icl {

// d = a b^T of a consumer's 64 rows of a and kColumns rows of b, over `steps` slabs of depth. In a stage they are at
// `a_bytes` and `b_bytes`. All stages are released at the end.
template <typename T, int kColumns, int kStages>
__device__ __forceinline__ void multiply_tile(float (&d)[kColumns / 2], const unsigned char* stages, int stage_bytes,
                                              int a_bytes, int b_bytes, int steps, Pipeline<kStages>& pipeline,
                                              Ring<kStages>& at) {
  Ring<kStages> before = at;
  for (int step = 0; step < steps; ++step) {
    pipeline.wait(at);
    const unsigned char* const stage = stages + at.stage * stage_bytes;
    const uint64_t a = depth_in_rows(stage + a_bytes), b = depth_in_rows(stage + b_bytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSlabColumns / kWgmmaDepth; ++k)
      wgmma<T, kColumns>(d, a + k * kDepthStepInRows, b + k * kDepthStepInRows, step > 0 || k > 0);
    wgmma_commit();
    if (step > 0) {  // one step's products stay under way; those of the step before have been read
      wgmma_wait<1>();
      pipeline.release(before);
    }
    before = at;
    at = at.next();
  }
  wgmma_wait<0>(d);
  pipeline.release(before);
}

}  // namespace icl
