// Instructions that finish later than they are issued: cp.async (sm_80), mbarrier, TMA and wgmma (sm_90).
#pragma once

#include <cstdint>
#include <source_location>

namespace emu {

using Loc = std::source_location;

// cp.async: `bytes` is 4, 8 or 16; of these the first source_bytes are read, the rest of dst is zeroed.
void cp_async(void* dst, const void* src, int bytes, int source_bytes, Loc loc);
void cp_async_commit(Loc loc);
void cp_async_wait(int keep, Loc loc);

void mbarrier_init(uint64_t* bar, int count, Loc loc);
void mbarrier_arrive(uint64_t* bar, Loc loc);
void mbarrier_arrive_expect_tx(uint64_t* bar, int bytes, Loc loc);
void mbarrier_wait(uint64_t* bar, int parity, Loc loc);
void fence_mbarrier_init(Loc loc);
void fence_proxy_async(Loc loc);

// Fills the 128 bytes of a CUtensorMap; 0, or the number of the first argument that the driver would refuse (2 for
// the base, 3 element size, 4 rank, 5 dims, 6 strides, 7 box, 8 swizzle). strides_bytes: rank - 1, of dims 1 and up.
int tensor_map(void* map128, const void* base, int element_bytes, int rank, const uint64_t* dims,
               const uint64_t* strides_bytes, const uint32_t* box, int swizzle_bytes);
// coords: of the box's corner, innermost first; outside the tensor the box is filled with zeros.
void tma_load(void* dst, const void* map, uint64_t* bar, int rank, const int* coords, Loc loc);

// d[m64 n16-fragment] (+)= A B. Accumulators hold NaN from here to the wgmma_wait that covers them.
void wgmma_fence(Loc loc);
void wgmma(float* d, int n, bool bf16, uint64_t a_desc, uint64_t b_desc, bool accumulate, bool a_mn_major,
           bool b_mn_major, Loc loc);
void wgmma_register_a(float* d, int n, bool bf16, const uint32_t* a4, uint64_t b_desc, bool accumulate,
                      bool b_mn_major, Loc loc);
void wgmma_commit(Loc loc);
void wgmma_wait(int keep, Loc loc);
void set_max_registers(int n, bool increase, Loc loc);

}  // namespace emu
