// Runs CUDA kernel source on the host, one fiber per CUDA thread, one block at a time. For tests only.
//
// A kernel's .cu file, compiled by a plain C++ compiler with -fsanitize=thread,bounds,alignment and with this folder on
// the include path, sees CUDA's names through this header and the functions of csrc/ptx/hardware through those in
// hardware/. The sanitizers' libraries are not linked: what the compiler calls before every load and store is the
// emulator's (callbacks.cpp), which looks for races, uninitialised shared memory and accesses out of bounds
// (shadow.cpp). The module must keep its symbol table, where the __shared__ arrays are found.
// Every function here ends with a Loc: the place in the kernel that a report names.
//
// What it takes for wrong though the hardware may not: an access through another proxy that is ordered but not fenced
// by the thread that made the ordinary access (PTX accepts a fence anywhere between); wgmma with no wgmma_fence since
// the last wait, even if no register has changed; blocks that order themselves through atomics and __threadfence.
// What it cannot see: registers (reads of an accumulator before the wait show as NaN in results only), accesses in
// code that is not instrumented, an index past a static __shared__ array that was passed on as a pointer and lands in
// another such array (of known arrays the index is checked), more than two unordered readers of one warp (shadow.cpp),
// one buffer run over into the next without a gap between them, the encoding of instructions, clusters, bank
// conflicts, register counts, the last digits of mathematical functions other than 2^x, speed.
//
// Matrix products and 2^x are computed in float32, or as tensor cores and ex2.approx are known to (arithmetic.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __restrict__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static  // blocks run one after the other, so one copy will do
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __grid_constant__

// For the emulator's own header code, whose accesses are not the kernel's.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread", "bounds", "alignment")))

namespace emu {

using Loc = std::source_location;

// What a thread knows about itself. `thread` is its index in the block, counted the way CUDA does.
struct Context {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  int thread, warp, lane;
};
extern Context* current;  // set at every switch of fibers

// Dynamic shared memory of the running block, 1024-byte aligned.
void* dynamic_shared();
size_t dynamic_shared_size();
unsigned shared_offset(const void* p);  // of an address in dynamic shared memory: what a descriptor holds

// barrier: __syncthreads, for all threads of the block that have not returned.
void barrier(Loc loc);
enum class Reduce { kOr, kAnd, kCount };
int barrier_reduce(int predicate, Reduce kind, Loc loc);
void named_barrier_sync(int id, int threads, Loc loc);
void named_barrier_arrive(int id, int threads, Loc loc);

// Every lane of `mask` contributes `bytes` (at most 64); returns 32 slots of 64 bytes, valid until the lane's second
// next exchange. Lanes that meet must agree on `tag`: which kind of instruction this is. `memory`: orders memory too.
const unsigned char* exchange(unsigned mask, const void* v, int bytes, int tag, bool memory, Loc loc);
enum Tag { kTagSyncwarp = 1, kTagShfl, kTagShflXor, kTagShflDown, kTagShflUp, kTagVote, kTagWgmmaWait, kTagUser = 16 };

// Tells the checker of one atomic access, which orders nothing but does not race with other atomic ones.
void atomic_access(void* p, int bytes, Loc loc);
void thread_fence(Loc loc);

// The name of the kernel at this address, with its template arguments; `otherwise` if the module was stripped.
const char* kernel_name(const void* kernel, const char* otherwise);

using Body = void (*)(void*);
void run(dim3 grid, dim3 block, size_t smem, const char* name, Body body, void* closure, size_t closure_bytes);

// Runs f, the kernel with its arguments bound, for every thread of the grid; throws std::runtime_error with a report.
template <class F>
EMU_UNCHECKED void launch(dim3 grid, dim3 block, size_t smem, const char* name, F&& f) {
  using Closure = std::remove_reference_t<F>;
  run(grid, block, smem, name, [](void* p) { (*static_cast<Closure*>(p))(); }, const_cast<void*>(
      static_cast<const void*>(&f)), sizeof(Closure));
}

}  // namespace emu

#include "emu/arithmetic.h"
#include "emu/async.h"
#include "emu/intrinsics.h"
#include "emu/runtime.h"
