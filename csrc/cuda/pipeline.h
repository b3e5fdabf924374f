// A block of Hopper's kernels: one warpgroup that copies tiles, two that multiply them, and the ring between.
//
// A producer thread copies tiles by TMA into a ring of stages in shared memory; each copy completes on the stage's
// `full` mbarrier. Two consumer warpgroups multiply a stage by wgmma and arrive on its `empty` mbarrier, after which
// the producer fills it again. Both the copies and wgmma's reads belong to the asynchronous proxy and the mbarriers
// order them, so no proxy fence is needed as long as no thread itself writes what wgmma reads.
#pragma once

#include "hardware/sm90.h"

namespace icl {

constexpr int kWarpgroup = 128;
constexpr int kMaxSharedSm90 = 232448;  // bytes that a block can have

// A block of one producer and two consumer warpgroups: 3 x 168 registers a thread, shared out.
constexpr int kConsumers = 2, kThreadsSm90 = (1 + kConsumers) * kWarpgroup;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

// Where a thread is in a ring of stages.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;

  __device__ __forceinline__ Ring next() const {
    return stage + 1 < kStages ? Ring{stage + 1, parity} : Ring{0, parity ^ 1};
  }
};

// The mbarriers of a ring, in shared memory.
template <int kStages>
struct Pipeline {
  uint64_t full[kStages], empty[kStages];

  // By one thread; a block-wide barrier comes after.
  __device__ __forceinline__ void init(int consumer_warps) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], consumer_warps);
    }
    mbarrier_init_fence();
  }

  // Producer: the consumers have read what was in the stage; `bytes` are about to be copied into it.
  __device__ __forceinline__ void acquire(Ring<kStages> at, int bytes) {
    mbarrier_wait(&empty[at.stage], at.parity ^ 1);
    mbarrier_arrive_expect(&full[at.stage], bytes);
  }

  __device__ __forceinline__ void wait(Ring<kStages> at) { mbarrier_wait(&full[at.stage], at.parity); }

  // Consumer: this warp is done with the stage. Wgmma waits are per warp, so every warp arrives, by one lane.
  __device__ __forceinline__ void release(Ring<kStages> at) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[at.stage]);
  }
};

}  // namespace icl
