// Tiles as TMA writes them and wgmma reads them.
//
// They lie in slabs of 64 16-bit columns: rows of 128 bytes, swizzled in groups of 8 rows (1024 bytes, to which a slab
// must be aligned): the 16-byte piece i of row r is at i ^ (r % 8).
#pragma once

#include "hardware/sm90.h"

namespace icl {

constexpr int kSlabColumns = 64, kSlabRowBytes = 128;
constexpr int kWgmmaRows = 64, kWgmmaDepth = 16;

// Matrix descriptors (PTX ISA, "Matrix Descriptor Format"): start address, leading and stride byte offsets, each
// without its low four bits, and mode 1, the 128-byte swizzle. The stride offset is that between groups of 8 rows.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* tile, int leading_bytes) {
  return uint64_t((shared_address(tile) & 0x3ffff) >> 4) | uint64_t(leading_bytes >> 4) << 16 |
         uint64_t(8 * kSlabRowBytes >> 4) << 32 | uint64_t{1} << 62;
}

// Of a tile whose rows are M or N and whose columns are the depth; the leading offset does not count.
__device__ __forceinline__ uint64_t depth_in_rows(const void* tile) { return matrix_descriptor(tile, 16); }

// Of a tile whose rows are the depth, N being the columns of one or more slabs, slab_bytes apart.
__device__ __forceinline__ uint64_t depth_in_columns(const void* tile, int slab_bytes) {
  return matrix_descriptor(tile, slab_bytes);
}

// kWgmmaDepth further along the depth: 32 bytes along a row, or 16 rows down. The swizzle is a function of the address,
// so that a step inside the 128-byte row is right too.
constexpr uint64_t kDepthStepInRows = kWgmmaDepth * 2 >> 4;
constexpr uint64_t kDepthStepInColumns = kWgmmaDepth * kSlabRowBytes >> 4;

}  // namespace icl
