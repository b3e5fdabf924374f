// The zoo's kernels of Hopper: TMA and wgmma. See zoo.cu.
#include <cstring>
#include <map>
#include <stdexcept>

#include "zoo.h"

// --- tma ------------------------------------------------------------------------------------------------------------

struct alignas(64) Map {
  unsigned char bytes[128];
};

constexpr int kBoxRows = 8, kBoxColumns = 32, kBoxBytes = kBoxRows * kBoxColumns * 4;

// out[y][x] = 2 in[y][x] for boxes of one column of the tensor, which the last one overhangs
__global__ void tma(float* out, const Map map, int rows, int columns, int count, int defect) {
  __shared__ uint64_t full;
  SHARED(float, box);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    emu::mbarrier_init(&full, 1, HERE);
    emu::fence_mbarrier_init(HERE);
  }
  for (int i = t; i < kBoxRows * kBoxColumns; i += kThreads) box[i] = -1;  // @tma-store
  if (defect != kNoProxyFenceAfterWrite) emu::fence_proxy_async(HERE);  // the stores above, before TMA's
  __syncthreads();
  for (int i = 0; i < count; ++i) {
    if (t == 0) {
      const int error = defect == kTooManyBytesExpected ? 16 : defect == kTooFewBytesExpected ? -16 : 0;
      emu::mbarrier_arrive_expect_tx(&full, kBoxBytes + error, HERE);
      const int corner[] = {static_cast<int>(blockIdx.x) * kBoxColumns, i * kBoxRows, 0};
      float* dst = box + (defect == kMisalignedTma ? 4 : defect == kTmaPastShared ? 64 : 0);
      emu::tma_load(dst, &map, &full, defect == kWrongRank ? 3 : 2, corner, HERE);  // @tma-load
    }
    if (defect == kNeverWaited && i + 1 == count) return;
    if (defect != kNoTmaWait) emu::mbarrier_wait(&full, i & 1, HERE);  // @tma-wait
    const int x = static_cast<int>(blockIdx.x) * kBoxColumns;
    for (int k = t; k < kBoxRows * kBoxColumns; k += kThreads) {
      const int row = i * kBoxRows + k / kBoxColumns, column = x + k % kBoxColumns;
      const float value = 2 * box[k] + 0 * box[(k + 1) % (kBoxRows * kBoxColumns)];  // @tma-read
      if (row < rows && column < columns) out[row * columns + column] = value;
    }
    if (defect != kNoProxyFenceAfterRead) emu::fence_proxy_async(HERE);  // the reads above, before the next copy
    if (defect != kRefillTooEarly) __syncthreads();
  }
}

// out = one box of a tensor of `rank` dimensions, as it lies in shared memory
__global__ void box(float* out, const Map map, int rank, const int* corner, int elements) {
  __shared__ uint64_t full;
  SHARED(float, values);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    int at[5] = {};
    for (int i = 0; i < rank; ++i) at[i] = corner[i];
    emu::mbarrier_init(&full, 1, HERE);
    emu::fence_mbarrier_init(HERE);
    emu::mbarrier_arrive_expect_tx(&full, elements * 4, HERE);
    emu::tma_load(values, &map, &full, rank, at, HERE);
  }
  __syncthreads();
  emu::mbarrier_wait(&full, 0, HERE);
  for (int i = t; i < elements; i += kThreads) out[i] = values[i];
}

// --- wgmma ----------------------------------------------------------------------------------------------------------

constexpr int kTileM = 64, kTileN = 128, kTileK = 64, kStages = 2;
constexpr int kTileABytes = kTileM * kTileK * 2, kTileBBytes = kTileN * kTileK * 2;

// Elements that lie side by side in shared memory along an operand's contiguous dimension.
constexpr int span(int swizzle) { return swizzle ? swizzle / 2 : 8; }

uint64_t descriptor(unsigned start, unsigned leading, unsigned stride, int swizzle) {
  const uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return start >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 | mode << 62;
}

// Of 16 k, from kk * 16 on, of a tile that lies as [contiguous / span][other][span].
template <int kSwizzle, bool kMnMajor>
uint64_t operand(const char* tile, int mn, int kk) {
  const unsigned start = emu::shared_offset(tile);
  const auto pitch = static_cast<unsigned>(span(kSwizzle) * 2);
  if (!kMnMajor) {
    const unsigned slab = static_cast<unsigned>(mn) * pitch;
    const int k = kk * 16;
    const unsigned at = start + static_cast<unsigned>(k / span(kSwizzle)) * slab +
                        static_cast<unsigned>(k % span(kSwizzle)) * 2;
    return descriptor(at, kSwizzle ? 16 : slab, 8 * pitch, kSwizzle);
  }
  const unsigned slab = kTileK * pitch, at = start + static_cast<unsigned>(kk) * 16 * pitch;
  return kSwizzle ? descriptor(at, slab, 8 * pitch, kSwizzle) : descriptor(at, 8 * pitch, slab, 0);
}

// A tile of `mn` x kTileK in as many boxes as its contiguous dimension has spans.
template <int kSwizzle, bool kMnMajor>
void load_tile(char* dst, const Map& map, uint64_t* full, int mn, int mn0, int k0) {
  const int contiguous = kMnMajor ? mn : kTileK, other = kMnMajor ? kTileK : mn;
  for (int s = 0; s < contiguous / span(kSwizzle); ++s) {
    const int inner = s * span(kSwizzle);
    const int corner[] = {kMnMajor ? mn0 + inner : k0 + inner, kMnMajor ? k0 : mn0};
    emu::tma_load(dst + s * other * span(kSwizzle) * 2, &map, full, 2, corner, HERE);  // @gemm-load
  }
}

// c [M, N] = A B, A [M, K] or, if MN-major, [K, M]; B [N, K] or [K, N]. Warpgroup 0 multiplies, 1 copies.
template <int kSwizzle, bool kAMn, bool kBMn, bool kARegisters>
__global__ void gemm(float* c, const uint16_t* a, const Map map_a, const Map map_b, int n_columns, int depth, bool bf16,
                     int defect) {
  __shared__ uint64_t full[kStages], empty[kStages];
  SHARED(char, shared);
  char* const tile_a = shared;
  char* const tile_b = shared + kStages * kTileABytes;
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
  const int m0 = static_cast<int>(blockIdx.y) * kTileM, n0 = static_cast<int>(blockIdx.x) * kTileN;
  const int tiles = depth / kTileK;
  if (t == 0) {
    for (int s = 0; s < kStages; ++s) {
      emu::mbarrier_init(&full[s], 1, HERE);  // @gemm-init
      emu::mbarrier_init(&empty[s], 128, HERE);
    }
    if (defect != kNoInitFence) emu::fence_mbarrier_init(HERE);
  }
  __syncthreads();
  if (t >= 128) {
    emu::set_max_registers(defect == kOddMaxRegisters ? 30 : 40, false, HERE);  // @max-registers
    if (t != 128) return;
    for (int i = 0; i < tiles; ++i) {
      const int s = i % kStages;
      if (defect != kNoEmptyWait) emu::mbarrier_wait(&empty[s], (i / kStages & 1) ^ 1, HERE);
      emu::mbarrier_arrive_expect_tx(&full[s], (kARegisters ? 0 : kTileABytes) + kTileBBytes, HERE);
      if (!kARegisters) {
        load_tile<kSwizzle, kAMn>(tile_a + s * kTileABytes, map_a, &full[s], kTileM, m0, i * kTileK);
      }
      load_tile<kSwizzle, kBMn>(tile_b + s * kTileBBytes, map_b, &full[s], kTileN, n0, i * kTileK);
    }
    return;
  }
  emu::set_max_registers(232, true, HERE);
  float d[kTileN / 2];
  for (int i = 0; i < tiles; ++i) {
    const int s = i % kStages;
    if (defect != kNoFullWait) emu::mbarrier_wait(&full[s], i / kStages & 1, HERE);
    if (defect != kNoWgmmaFence) emu::wgmma_fence(HERE);
    if (defect == kWarpgroupDiverges && warp == 2) emu::wgmma_fence(HERE);  // @diverges
    for (int kk = 0; kk < kTileK / 16; ++kk) {
      uint64_t b_desc = operand<kSwizzle, kBMn>(tile_b + s * kTileBBytes, kTileN, kk);
      if (defect == kDescriptorPastShared && i == 1) b_desc += 2048;
      const bool accumulate = i || kk;
      if constexpr (kARegisters) {
        uint32_t fragment[4];
        for (int r = 0; r < 4; ++r) {
          const int row = m0 + warp * 16 + lane / 4 + r % 2 * 8, k = i * kTileK + kk * 16 + lane % 4 * 2 + r / 2 * 8;
          std::memcpy(&fragment[r], a + row * depth + k, 4);
        }
        emu::wgmma_register_a(d, kTileN, bf16, fragment, b_desc, accumulate, kBMn, HERE);
      } else {
        if (defect == kHalfAWarpgroup && warp > 1) continue;
        const uint64_t a_desc = operand<kSwizzle, kAMn>(tile_a + s * kTileABytes, kTileM, kk);
        emu::wgmma(d, kTileN, bf16, a_desc, b_desc, accumulate, kAMn, kBMn, HERE);  // @wgmma
      }
    }
    if (defect != kNoWgmmaCommit) emu::wgmma_commit(HERE);
    if (defect == kReleaseBeforeWait) emu::mbarrier_arrive(&empty[s], HERE);
    if (defect == kAccumulatorsWrittenEarly) d[0] *= 0.5f;
    if (defect != kNoWgmmaWait && !(defect == kAccumulatorsReadEarly && i + 1 == tiles)) {
      emu::wgmma_wait(0, HERE);  // @wgmma-wait
    }
    if (defect != kReleaseBeforeWait) emu::mbarrier_arrive(&empty[s], HERE);
  }
  for (int j = 0; j < kTileN / 8; ++j) {
    for (int e = 0; e < 4; ++e) {
      const int row = m0 + warp * 16 + lane / 4 + e / 2 * 8, column = n0 + j * 8 + lane % 4 * 2 + e % 2;
      c[row * n_columns + column] = d[j * 4 + e];
    }
  }
  if (defect == kAccumulatorsReadEarly) emu::wgmma_wait(0, HERE);
}

// The same product of one tile, both operands written by ordinary stores: K-major, no swizzle.
__global__ void stored(float* c, const uint16_t* a, const uint16_t* b, int defect) {
  SHARED(char, shared);
  const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
  auto store = [&](char* tile, const uint16_t* source, int mn) {
    for (int i = t; i < mn * 2; i += 128) {  // 8 of k of one row
      Four four;
      std::memcpy(&four, source + i / 2 * 16 + i % 2 * 8, 16);
      *reinterpret_cast<Four*>(tile + i % 2 * mn * 16 + i / 2 * 16) = four;  // @operand-store
    }
  };
  char* const tile_b = shared + kTileM * 32;
  store(shared, a, kTileM);
  store(tile_b, b, kTileN);
  if (defect != kNoProxyFenceAfterStore) emu::fence_proxy_async(HERE);
  __syncthreads();
  float d[kTileN / 2];
  emu::wgmma_fence(HERE);
  emu::wgmma(d, kTileN, true, descriptor(emu::shared_offset(shared), kTileM * 16, 128, 0),
             descriptor(emu::shared_offset(tile_b), kTileN * 16, 128, 0), false, false, false, HERE);  // @wgmma-stored
  emu::wgmma_commit(HERE);
  emu::wgmma_wait(0, HERE);
  for (int j = 0; j < kTileN / 8; ++j) {
    for (int e = 0; e < 4; ++e) {
      const int row = warp * 16 + lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
      c[row * kTileN + column] = d[j * 4 + e];
    }
  }
}

// --- what the tests call --------------------------------------------------------------------------------------------

namespace {

int refused(int argument) {
  if (argument) throw std::runtime_error("tensor_map refuses argument " + std::to_string(argument));
  return 0;
}

// Of a matrix [rows, columns] of 2-byte elements, in boxes of [box_rows, span].
Map matrix_map(const void* p, int rows, int columns, int box_rows, int swizzle) {
  const uint64_t dims[] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)};
  const uint64_t strides[] = {static_cast<uint64_t>(columns) * 2};
  const uint32_t box[] = {static_cast<uint32_t>(span(swizzle)), static_cast<uint32_t>(box_rows)};
  Map map;
  refused(emu::tensor_map(&map, p, 2, 2, dims, strides, box, swizzle));
  return map;
}

template <int kSwizzle, bool kAMn, bool kBMn, bool kARegisters>
void run_gemm(float* c, const uint16_t* a, const uint16_t* b, int m, int n, int k, bool bf16, int defect) {
  const Map map_a = kAMn ? matrix_map(a, k, m, kTileK, kSwizzle) : matrix_map(a, m, k, kTileM, kSwizzle);
  const Map map_b = kBMn ? matrix_map(b, k, n, kTileK, kSwizzle) : matrix_map(b, n, k, kTileN, kSwizzle);
  const size_t smem = kStages * (kTileABytes + kTileBBytes);
  auto* kernel = gemm<kSwizzle, kAMn, kBMn, kARegisters>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
  LAUNCH(kernel, (static_cast<unsigned>(n / kTileN), static_cast<unsigned>(m / kTileM)), 256, smem, c, a, map_a, map_b,
         n, k, bf16, defect);
}

}  // namespace

bool dispatch_sm90(const std::string& name, int defect, void** p, const long* n) {
  auto f = [&](int i) { return static_cast<float*>(p[i]); };
  auto u = [&](int i) { return static_cast<uint16_t*>(p[i]); };
  const auto v = [&](int i) { return static_cast<int>(n[i]); };
  if (name == "tma") {
    float* out = f(0);
    const int rows = v(0), columns = v(1), count = (rows + kBoxRows - 1) / kBoxRows;
    const uint64_t extra = defect == kTmaSourcePastEnd ? 4 : 0;
    const uint64_t dims[] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows) + extra};
    const uint64_t strides[] = {static_cast<uint64_t>(columns) * 4};
    const uint32_t box[] = {kBoxColumns, kBoxRows};
    Map map;
    refused(emu::tensor_map(&map, p[1], 4, 2, dims, strides, box, 0));
    LAUNCH(tma, (static_cast<unsigned>((columns + kBoxColumns - 1) / kBoxColumns)), kThreads, kBoxBytes, out, map,
           rows, columns, count, defect);
  } else if (name == "box") {  // numbers: rank, dims, box
    float* out = f(0);
    const int* corner = static_cast<const int*>(p[2]);
    const int rank = v(0);
    uint64_t dims[5], strides[5], pitch = 4;
    uint32_t shape[5];
    int elements = 1;
    for (int i = 0; i < rank; ++i) {
      dims[i] = static_cast<uint64_t>(n[1 + i]);
      strides[i] = pitch *= dims[i];
      shape[i] = static_cast<uint32_t>(n[1 + rank + i]);
      elements *= v(1 + rank + i);
    }
    Map map;
    refused(emu::tensor_map(&map, p[1], 4, rank, dims, strides, shape, 0));
    LAUNCH(box, (1), kThreads, static_cast<size_t>(elements) * 4, out, map, rank, corner, elements);
  } else if (name == "stored") {
    float* c = f(0);
    uint16_t *a = u(1), *b = u(2);
    LAUNCH(stored, (1), 128, (kTileM + kTileN) * 32, c, a, b, defect);
  } else {
    using Run = void (*)(float*, const uint16_t*, const uint16_t*, int, int, int, bool, int);
    static const std::map<std::string, Run> gemms = {
        {"gemm_128", run_gemm<128, false, false, false>},   {"gemm_128_b_mn", run_gemm<128, false, true, false>},
        {"gemm_128_a_mn", run_gemm<128, true, false, false>}, {"gemm_128_registers", run_gemm<128, false, false, true>},
        {"gemm_128_registers_b_mn", run_gemm<128, false, true, true>},
        {"gemm_64", run_gemm<64, false, false, false>},     {"gemm_64_mn", run_gemm<64, true, true, false>},
        {"gemm_32", run_gemm<32, false, false, false>},     {"gemm_32_mn", run_gemm<32, true, true, false>},
        {"gemm_0", run_gemm<0, false, false, false>},       {"gemm_0_mn", run_gemm<0, true, true, false>},
    };
    const auto found = gemms.find(name);
    if (found == gemms.end()) return false;
    found->second(f(0), u(1), u(2), v(0), v(1), v(2), n[3] != 0, defect);
  }
  return true;
}

extern "C" __attribute__((visibility("default"))) int zoo_tensor_map(  //
    long base, int element_bytes, int rank, const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
    int swizzle) {
  Map map;
  return emu::tensor_map(&map, reinterpret_cast<void*>(base), element_bytes, rank, dims, strides, box, swizzle);
}
