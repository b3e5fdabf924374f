// What the kernels with planted defects share.
#pragma once

#include <string>

#include "emu/emu.h"

#define HERE emu::Loc::current()
#define SHARED(T, name) T* const name = static_cast<T*>(emu::dynamic_shared())
#define LAUNCH(kernel, grid, block, smem, ...) \
  emu::launch(dim3 grid, dim3(block), smem, #kernel, [=] { kernel(__VA_ARGS__); })

enum Defect {
  kNone,
  // tiles: through shared memory
  kNoSyncAfterLoad, kNoSyncBeforeOverwrite, kOneThreadSyncsElsewhere, kOneThreadSkipsSync, kNeverWritten,
  // warps
  kNoSyncwarp, kDivergentShuffle, kLaneNotInMask, kNoVotePartner,
  // blocks
  kPlainAdd, kBlocksWriteSame, kBlockReadsAnother, kBlockOverwritesRead, kAtomicAndPlain,
  // bounds
  kReadPastEnd, kWriteBeforeStart, kFarAway, kDynamicOverflow, kDynamicUnderflow, kStaticIndex, kRegisterIndex,
  kMisalignedVector, kMisalignedAtomic, kGuardBytes,
  // uninitialised
  kDynamicUninitialised, kStaticUninitialised, kOnlyPreviousBlock,
  // copies: cp.async
  kWaitTooWeak, kNoWait, kNoCommit, kNoSyncAfterWait, kBufferOverwritten, kMisalignedCopy, kCopySourcePastEnd,
  kReturnsWithCopies,
  // named barriers
  kConsumerDoesNotSync, kProducerDoesNotArrive, kCountsDiffer, kCountOdd, kProducerOverwrites,
  // mbarriers
  kNotInitialised, kNoSyncAfterInit, kTooManyArrivals, kWrongParity, kNoArrival, kNoMbarrierWait,
  // tma
  kNoTmaWait, kTooManyBytesExpected, kTooFewBytesExpected, kNoProxyFenceAfterWrite,
  kNoProxyFenceAfterRead, kMisalignedTma, kTmaPastShared, kNeverWaited, kRefillTooEarly, kTmaSourcePastEnd,
  kWrongRank,
  // gemm: wgmma
  kNoInitFence, kNoWgmmaFence, kNoWgmmaCommit, kNoWgmmaWait, kReleaseBeforeWait, kNoFullWait, kNoEmptyWait,
  kAccumulatorsReadEarly, kAccumulatorsWrittenEarly, kHalfAWarpgroup, kDescriptorPastShared, kOddMaxRegisters,
  kWarpgroupDiverges, kNoProxyFenceAfterStore,
};

constexpr int kThreads = 64;

struct alignas(16) Four {
  float x, y, z, w;
};

// In zoo_sm90.cu and zoo_arithmetic.cu; false if the kernel is none of their own.
bool dispatch_sm90(const std::string& name, int defect, void** p, const long* n);
bool dispatch_arithmetic(const std::string& name, void** p, const long* n);
