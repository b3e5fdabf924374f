// Kernels that are right with defect kNone and wrong in one known way with any other; the tests show that the emulator
// tells. A comment that begins with @ names the line that a report must name.
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "emu/control.h"
#include "zoo.h"

// --- through shared memory ------------------------------------------------------------------------------------------

// out[t] = sum over tiles of in[tile][kThreads - 1 - t]
__global__ void tiles(float* out, const float* in, int count, int defect) {
  __shared__ float tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; i < count; ++i) {
    if (defect != kNoSyncBeforeOverwrite) __syncthreads();  // the last round's reads are over
    if (!(defect == kNeverWritten && t == 5)) tile[t] = in[i * kThreads + t];  // @tile-write
    if (defect == kOneThreadSyncsElsewhere && t == 3) {
      __syncthreads();
    } else if (defect != kNoSyncAfterLoad && !(defect == kOneThreadSkipsSync && t == 3)) {
      __syncthreads();  // @tile-sync
    }
    sum += tile[kThreads - 1 - t];  // @tile-read
    if (defect == kOneThreadSkipsSync && t == 3) __syncwarp(1u << 3);
  }
  out[t] = sum;
}

// --- warps ----------------------------------------------------------------------------------------------------------

// out[t] = sum over the warp, by shuffles, + what the next lane had, through shared memory
__global__ void warps(float* out, const float* in, int defect) {
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  float sum = in[t];
  if (defect == kDivergentShuffle && lane == 7) {
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);  // @other-shuffle
  } else {
    const unsigned mask = defect == kLaneNotInMask ? 0xfffffffeu : 0xffffffffu;
    sum += __shfl_xor_sync(mask, sum, 16);  // @shuffle
  }
  for (int bits = 8; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  values[t] = in[t];  // @warp-write
  if (defect != kNoSyncwarp) __syncwarp();
  const float next = values[t / 32 * 32 + (lane + 1) % 32];  // @warp-read
  const bool mine = lane < 4;
  if (!(defect == kNoVotePartner && lane == 31)) {
    sum += static_cast<float>(__popc(__ballot_sync(0xffffffffu, mine)));  // @vote
  }
  sum += static_cast<float>(__all_sync(0xffffffffu, 1) + __any_sync(0xffffffffu, lane == 9));  // @vote-all
  out[t] = sum + next;
}

// --- blocks ---------------------------------------------------------------------------------------------------------

// total += all of in; out[block] = its first element
__global__ void blocks(float* out, float* total, float* in, int defect) {
  const int t = static_cast<int>(threadIdx.x), b = static_cast<int>(blockIdx.x);
  float* mine = &in[b * kThreads];
  if (defect == kPlainAdd) {
    *total += mine[t];  // @plain-add
  } else {
    atomicAdd(total, mine[t]);  // @atomic-add
  }
  if (defect == kAtomicAndPlain && t == 0 && b == 1) *total = 0;  // @plain-store
  if (t) return;
  out[defect == kBlocksWriteSame ? 0 : b] = mine[0];  // @block-write
  const int blocks = static_cast<int>(gridDim.x);
  if (defect == kBlockReadsAnother) out[b] += out[(b + 1) % blocks];  // @block-read
  if (defect == kBlockOverwritesRead) in[(b + 1) % blocks * kThreads] = 0;  // @block-overwrite
}

// --- bounds ---------------------------------------------------------------------------------------------------------

// out[t] = in[t] through shared memory, registers and a vector; one warp; `four` is 4
__global__ void bounds(float* out, const float* in, int four, int defect) {
  __shared__ float table[8][4];
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = in[t + (defect == kReadPastEnd && t == 31)];  // @global-read
  table[t / 4][t % 4] = values[t];
  if (defect == kDynamicOverflow && t == 9) values[34] = 1;    // @dynamic-overflow
  if (defect == kDynamicUnderflow && t == 9) values[-1] = 1;   // @dynamic-underflow
  if (defect == kStaticIndex && t == 9) table[0][four] = 1;    // @static-index
  if (defect == kFarAway && t == 9) *reinterpret_cast<float*>(four * 4) = 1;  // @far-away
  if (defect == kGuardBytes && t == 9) std::memset(values + 32, 0, static_cast<size_t>(four));  // not instrumented
  float registers[4] = {table[t / 4][t % 4], 0, 0, 0};
  registers[(t + 1) % 3 + 1 + (defect == kRegisterIndex && t == 10)] += 1;  // @register-index
  if (t % 4 == 0) __syncwarp(0x11111111u);
  __syncwarp();
  if (t % 4 == 0) {
    const Four vector = *reinterpret_cast<const Four*>(values + t + (defect == kMisalignedVector));  // @vector
    out[t] = vector.x;
  } else {
    out[t] = registers[0];
  }
  if (defect == kWriteBeforeStart && t == 0) out[-1] = 0;  // @global-write
  if (defect == kMisalignedAtomic && t == 0) {
    atomicAdd(reinterpret_cast<int*>(reinterpret_cast<char*>(out) + 2), 0);  // @misaligned-atomic
  }
}

// --- uninitialised --------------------------------------------------------------------------------------------------

__global__ void uninitialised(float* out, const float* in, int defect) {
  __shared__ float fixed[4];
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x), b = static_cast<int>(blockIdx.x);
  if (t == 0) {
    for (int i = 0; i < 4; ++i) {
      if (!(defect == kDynamicUninitialised && i == 2)) values[i] = in[i];
      if (!(defect == kStaticUninitialised && i == 3) && !(defect == kOnlyPreviousBlock && b == 1)) fixed[i] = in[i];
    }
  }
  __syncthreads();
  if (t < 4) {
    const float a = values[t];  // @dynamic-read
    out[b * 4 + t] = a + fixed[t];  // @static-read
  }
}

// --- cp.async -------------------------------------------------------------------------------------------------------

// out[t] = sum over tiles of in[tile][(t + 8) % kThreads]; double buffer; the last tile has only `valid` elements
__global__ void copies(float* out, const float* in, int count, int valid, int defect) {
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x);
  auto load = [&](int i) {
    float* dst = values + i % 2 * kThreads + t / 4 * 4;
    const float* src = in + i * kThreads + t / 4 * 4;
    const int left = i + 1 < count ? 4 : min(max(valid - t / 4 * 4, 0), 4);
    if (t % 4) return;
    const int bytes = defect == kCopySourcePastEnd ? 16 : left * 4;
    emu::cp_async(dst + (defect == kMisalignedCopy), src, 16, bytes, HERE);  // @copy
  };
  load(0);
  emu::cp_async_commit(HERE);
  float sum = 0;
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) load(i + 1);
    if (defect != kNoCommit) emu::cp_async_commit(HERE);
    if (defect == kWaitTooWeak) emu::cp_async_wait(2, HERE);
    if (defect != kWaitTooWeak && defect != kNoWait) emu::cp_async_wait(1, HERE);
    if (defect != kNoSyncAfterWait) __syncthreads();  // all copies of this tile are there
    sum += values[i % 2 * kThreads + (t + 8) % kThreads];  // @copy-read
    if (defect != kBufferOverwritten) __syncthreads();  // before the next round copies over what was read
  }
  if (defect == kReturnsWithCopies) {
    load(count - 1);
    return;
  }
  emu::cp_async_commit(HERE);
  emu::cp_async_wait(0, HERE);
  out[t] = sum;
}

// --- named barriers -------------------------------------------------------------------------------------------------

// Warp 0 writes a tile, warp 1 reads it; barrier 1: full, barrier 2: empty
__global__ void named(float* out, const float* in, int count, int defect) {
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const int threads = defect == kCountOdd ? 60 : 64;
  if (t < 32) {
    for (int i = 0; i < count; ++i) {
      if (i && defect != kProducerOverwrites) emu::named_barrier_sync(2, 64, HERE);
      values[lane] = in[i * 32 + lane];  // @named-write
      if (defect != kProducerDoesNotArrive) emu::named_barrier_arrive(1, threads, HERE);  // @named-arrive
    }
  } else {
    float sum = 0;
    for (int i = 0; i < count; ++i) {
      const int said = defect == kCountsDiffer ? 96 : threads;
      if (defect != kConsumerDoesNotSync) emu::named_barrier_sync(1, said, HERE);  // @named-sync
      sum += values[31 - lane];  // @named-read
      if (i + 1 < count && defect != kProducerOverwrites) emu::named_barrier_arrive(2, 64, HERE);
    }
    out[lane] = sum;
  }
}

// --- mbarriers ------------------------------------------------------------------------------------------------------

// The same with mbarriers
__global__ void mbarriers(float* out, const float* in, int count, int defect) {
  __shared__ uint64_t full, empty;
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  if (t == 0 && defect != kNotInitialised) {
    emu::mbarrier_init(&full, 32, HERE);  // @init
    emu::mbarrier_init(&empty, 32, HERE);
  }
  if (defect != kNoSyncAfterInit) __syncthreads();
  if (t < 32) {
    for (int i = 0; i < count; ++i) {
      emu::mbarrier_wait(&empty, (i & 1) ^ 1, HERE);
      values[lane] = in[i * 32 + lane];  // @m-write
      if (!(defect == kNoArrival && lane == 3)) emu::mbarrier_arrive(&full, HERE);  // @m-arrive
      if (defect == kTooManyArrivals && lane == 3) {
        for (int k = 0; k < 40; ++k) emu::mbarrier_arrive(&full, HERE);  // @m-extra
      }
    }
  } else {
    float sum = 0;
    for (int i = 0; i < count; ++i) {
      const int parity = (i & 1) ^ (defect == kWrongParity);
      if (defect != kNoMbarrierWait) emu::mbarrier_wait(&full, parity, HERE);  // @m-wait
      sum += values[31 - lane];  // @m-read
      emu::mbarrier_arrive(&empty, HERE);
    }
    out[lane] = sum;
  }
}

// --- the launch -----------------------------------------------------------------------------------------------------

__global__ void empty() {}

// --- what the tests call --------------------------------------------------------------------------------------------

namespace {

void dispatch(const std::string& name, int defect, void** p, const long* n) {
  auto f = [&](int i) { return static_cast<float*>(p[i]); };
  const auto v = [&](int i) { return static_cast<int>(n[i]); };
  const size_t words = kThreads * sizeof(float);
  if (name == "tiles") {
    float *out = f(0), *in = f(1);
    const int count = v(0);
    LAUNCH(tiles, (1), kThreads, 0, out, in, count, defect);
  } else if (name == "warps") {
    float *out = f(0), *in = f(1);
    LAUNCH(warps, (1), kThreads, words, out, in, defect);
  } else if (name == "blocks") {
    float *out = f(0), *total = f(1), *in = f(2);
    LAUNCH(blocks, (3), kThreads, 0, out, total, in, defect);
  } else if (name == "bounds") {
    float *out = f(0), *in = f(1);
    const int count = v(0);
    LAUNCH(bounds, (1), 32, 32 * sizeof(float), out, in, count, defect);
  } else if (name == "uninitialised") {
    float *out = f(0), *in = f(1);
    LAUNCH(uninitialised, (2), kThreads, words, out, in, defect);
  } else if (name == "copies") {
    float *out = f(0), *in = f(1);
    const int count = v(0), valid = v(1);
    LAUNCH(copies, (1), kThreads, 2 * words, out, in, count, valid, defect);
  } else if (name == "named" || name == "mbarriers") {
    float *out = f(0), *in = f(1);
    const int count = v(0);
    auto* kernel = name == "named" ? named : mbarriers;
    LAUNCH(kernel, (1), 64, words, out, in, count, defect);
  } else if (name == "empty") {  // numbers: grid x, y, threads, shared memory, allowed
    if (n[4]) cudaFuncSetAttribute(empty, cudaFuncAttributeMaxDynamicSharedMemorySize, v(4));
    LAUNCH(empty, (static_cast<unsigned>(n[0]), static_cast<unsigned>(n[1])), static_cast<unsigned>(n[2]),
           static_cast<size_t>(n[3]));
  } else if (!dispatch_sm90(name, defect, p, n) && !dispatch_arithmetic(name, p, n)) {
    throw std::runtime_error("there is no kernel " + name);
  }
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void zoo_settings(int race, const char* order, unsigned seed, int eager,
                                                         const char* arithmetic) {
  emu::set_race(race);
  emu::set_order(order, seed);
  emu::set_async(eager);
  emu::set_arithmetic(arithmetic);
}

__attribute__((visibility("default"))) int zoo_run(const char* name, int defect, int count, void** buffers,
                                                   const long* bytes, const char** names, const long* numbers,
                                                   char* message, long capacity) {
  try {
    std::vector<emu::Buffer> all;
    for (int i = 0; i < count; ++i) all.push_back({buffers[i], static_cast<size_t>(bytes[i]), names[i]});
    emu::set_buffers(all);
    dispatch(name, defect, buffers, numbers);
    return 0;
  } catch (const std::exception& error) {
    snprintf(message, static_cast<size_t>(capacity), "%s", error.what());
    return 1;
  }
}

__attribute__((visibility("default"))) int zoo_multiprocessors(int count) {
  emu::set_multiprocessors(count);
  int device = -1, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
  return value;
}
}
