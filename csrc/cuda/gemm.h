// Products of matrices, a block of threads a tile at a time: the one pipeline of all the loss kernels.
//
// A block multiplies kM rows of a with kN rows of b ("rows": the dimension that is not summed over) in steps of kStep
// of depth. cp.async fills kStages stages of shared memory ahead of the tensor cores. A block that computes several
// tiles runs through them without a pause: the next tile's first steps are on their way while a tile's results are
// used. Results stay in registers, in the layout of mma.h, and go to the caller's function.
//
// Why tiles of 128 x 128 by 8 warps of 32 x 64: a step of 16 depth reads 6 fragments (3 KiB a warp) from shared memory
// for 16 mma, 24 KiB and 192 cycles a block, where the tensor cores of sm_80 take 256 cycles; and 64 accumulators leave
// room for two blocks on a multiprocessor, so that one computes while the other stores or exponentiates.
#pragma once

#include "cuda/launch.h"
#include "cuda/mma.h"
#include "cuda/tile.h"
#include "cuda/tunables.h"
#include "cuda/warp.h"

namespace icl {

constexpr int64_t kMaxDepth = INT32_MAX - 64;  // depth is counted in int, which spares registers

// A factor of a product.
template <typename T>
struct Operand {
  const T* data;   // [rows][depth], or [depth][rows] where the product takes it transposed
  int64_t stride;  // of the first of the two dimensions
  int64_t rows;
  bool vectors;    // see vectors_fit

  template <bool kTransposed>
  __device__ __forceinline__ Operand from_row(int64_t row) const {
    return {data + (kTransposed ? row : row * stride), stride, rows - row, vectors};
  }
};

template <typename T>
Operand<T> operand(const void* data, int64_t stride, int64_t rows) {
  const T* typed = static_cast<const T*>(data);
  return {typed, stride, rows, vectors_fit(typed, stride)};
}

// A tile's product: a and b begin at its first row and column.
template <typename T>
struct Product {
  Operand<T> a, b;
  int depth;
};

// What is left of a matrix from here, as far as a tile can reach.
template <int kTile>
__device__ __forceinline__ int within_tile(int64_t left) {
  return static_cast<int>(min(left, int64_t{kTile}));
}

struct EveryDepth {
  __device__ __forceinline__ bool operator()(int) const { return true; }
};

// A thread's share of copying one operand's tiles of kRows x kStep, a step of depth after the other. What a step needs
// beyond an addition is computed once a product: the loop has few issue slots and registers to spare.
template <typename T, int kRows, int kStep, int kThreads, bool kTransposed>
struct Loader {
  static constexpr int kPitch = (kTransposed ? kRows : kStep) + kPad<T>, kTile = (kTransposed ? kStep : kRows) * kPitch;
  static constexpr int kAcross = (kTransposed ? kRows : kStep) / kVectorWidth<T>;
  static constexpr int kApart = kThreads / kAcross, kCopies = (kTransposed ? kStep : kRows) / kApart;
  static_assert(kThreads % kAcross == 0 && kApart * kCopies == (kTransposed ? kStep : kRows));

  const T* from[kTransposed ? 1 : kCopies];
  int64_t stride;
  int bytes;  // of a copy in which nothing is beyond the depth
  bool vectors;

  __device__ __forceinline__ void begin(const Operand<T>& operand) {
    const int down = threadIdx.x / kAcross, across = threadIdx.x % kAcross * kVectorWidth<T>;
    stride = operand.stride;
    vectors = operand.vectors;
    if constexpr (kTransposed) {
      from[0] = operand.data + down * stride + across;
      bytes = static_cast<int>(min(max(operand.rows - across, int64_t{0}), int64_t{kVectorWidth<T>})) * int(sizeof(T));
    } else {
      bytes = 16;
      const int last = within_tile<kRows>(operand.rows) - 1;
#pragma unroll
      for (int i = 0; i < kCopies; ++i)  // beyond the last row the last again: nobody looks at what comes of it
        from[i] = operand.data + min(down + i * kApart, last) * stride + across;
    }
  }

  // keep(row): whether this depth counts; only where kTransposed.
  template <typename Keep>
  __device__ __forceinline__ void copy(T* tile, int left /* of the depth */, Keep keep) {
    const int down = threadIdx.x / kAcross, across = threadIdx.x % kAcross * kVectorWidth<T>;
    T* to = tile + down * kPitch + across;
    if constexpr (kTransposed) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int depth = down + i * kApart;
        cp_async_16(to + i * kApart * kPitch, from[0] + i * kApart * stride, depth < left && keep(depth) ? bytes : 0);
      }
      from[0] += kStep * stride;
    } else {
      const int inside = min(max(left - across, 0), kVectorWidth<T>) * int(sizeof(T));
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        cp_async_16(to + i * kApart * kPitch, from[i], inside);
        from[i] += kStep;
      }
    }
  }

  // The same, element by element, of an operand whose rows are not aligned.
  template <typename Keep>
  __device__ __forceinline__ void copy_elements(T* tile, const Operand<T>& operand, int depth, int left, Keep keep) {
    constexpr int kColumns = kTransposed ? kRows : kStep;
    const T* data = operand.data + (kTransposed ? depth * operand.stride : depth);
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kStep; i += kThreads) {
      const int down = i / kColumns, across = i % kColumns;
      const bool inside = kTransposed ? down < left && keep(down) && across < operand.rows
                                     : across < left && down < operand.rows;
      tile[down * kPitch + across] = inside ? data[down * operand.stride + across] : from_float<T>(0);
    }
  }
};

template <typename T, int kM_, int kN_, int kWarpsM, int kWarpsN, bool kATransposed_ = false,
          bool kBTransposed_ = false, bool kPieces_ = sizeof(T) == 4>
struct Gemm {
  using Type = T;
  using M = Mma<T>;
  static constexpr int kM = kM_, kN = kN_, kThreads = 32 * kWarpsM * kWarpsN, kAcross = kWarpsN;
  static constexpr bool kATransposed = kATransposed_, kBTransposed = kBTransposed_;
  static constexpr int kStep = ICL_GEMM_STEP_BYTES / int(sizeof(T)), kStages = ICL_GEMM_STAGES;
  // blocks on a multiprocessor; the fragments of float32 take the registers of two
  static constexpr int kResident = sizeof(T) == 4 && kThreads > 128 ? 1 : ICL_GEMM_BLOCKS;
  // of a warp: blocks of 16 rows and of 8 columns
  static constexpr int kRowBlocks = kM / kWarpsM / 16, kColumnBlocks = kN / kWarpsN / 8;
  using ALoader = Loader<T, kM, kStep, kThreads, kATransposed>;
  using BLoader = Loader<T, kN, kStep, kThreads, kBTransposed>;
  static constexpr int kStage = ALoader::kTile + BLoader::kTile;
  static constexpr size_t kShared = kStages * kStage * sizeof(T);
  static_assert(kStep % M::kDepth == 0 && kColumnBlocks % 4 == 0 && kShared <= 99 * 1024 - 4096);

  using Tile = float[kRowBlocks][kColumnBlocks][4];

  // Sums of float32 are cut, where a kernel has the registers: errors grow with the length of a piece more than with
  // their number. In one piece, a gradient's sum over thousands of rows is several times worse than cuBLAS'.
  static constexpr bool kPieces = kPieces_;
  static constexpr int kPieceDepth = 128;

  // Where in the tile the thread's element [i][j][2 * half + e] is: row(i, half), column(j) + e.
  static __device__ __forceinline__ int row(int i, int half) {
    return threadIdx.x / 32 / kWarpsN * (16 * kRowBlocks) + 16 * i + 8 * half + threadIdx.x % 32 / 4;
  }
  static __device__ __forceinline__ int column(int j) {
    return threadIdx.x / 32 % kWarpsN * (8 * kColumnBlocks) + 8 * j + 2 * (threadIdx.x % 4);
  }

  // The products describe(0), ..., describe(count - 1), one after the other; use(i, tile) takes each result. count > 0.
  // Where keep(d) is false, b counts as zero at depth d.
  template <typename Describe, typename Use, typename Keep = EveryDepth>
  static __device__ __forceinline__ void run(T* stages, int count, Describe describe, Use use, Keep keep = {}) {
    static_assert(kBTransposed || std::is_same_v<Keep, EveryDepth>);
    int loading = 0, depth = 0, whole_depth = 0;
    ALoader a;
    BLoader b;
    const auto load = [&](int stage) {
      if (loading < count) {
        if (depth == 0) {
          const Product<T> product = describe(loading);
          whole_depth = product.depth;
          a.begin(product.a);
          b.begin(product.b);
        }
        const auto kept = [&](int row) { return keep(depth + row); };
        T* to = stages + stage * kStage;
        if (a.vectors) {
          a.copy(to, whole_depth - depth, EveryDepth{});
        } else {
          a.copy_elements(to, describe(loading).a, depth, whole_depth - depth, EveryDepth{});
        }
        if (b.vectors) {
          b.copy(to + ALoader::kTile, whole_depth - depth, kept);
        } else {
          b.copy_elements(to + ALoader::kTile, describe(loading).b, depth, whole_depth - depth, kept);
        }
        depth += kStep;
        if (depth >= whole_depth) {
          depth = 0;
          ++loading;
        }
      }
      cp_async_commit();
    };

#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) load(stage);
    int stage = 0;
    for (int i = 0; i < count; ++i) {
      Tile tile = {}, pieces = {};  // without kPieces, the second takes no registers
      int left = describe(i).depth, piece = kPieceDepth;
      do {
        cp_async_wait<kStages - 2>();
        // every thread's copies to this stage have landed, and no thread reads the one that is filled next any more
        __syncthreads();
        load(stage == 0 ? kStages - 1 : stage - 1);
        multiply(stages + stage * kStage, tile);
        stage = stage == kStages - 1 ? 0 : stage + 1;
        left -= kStep;
        if constexpr (kPieces) {
          piece -= kStep;
          if (piece <= 0 || left <= 0) {
            move(tile, pieces);
            piece = kPieceDepth;
          }
        }
      } while (left > 0);
      if constexpr (kPieces) {
        use(i, pieces);
      } else {
        use(i, tile);
      }
    }
  }

 private:
  // to += from, from = 0
  static __device__ __forceinline__ void move(Tile& from, Tile& to) {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
      for (int j = 0; j < kColumnBlocks; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          to[i][j][e] += from[i][j][e];
          from[i][j][e] = 0;
        }
  }

  static __device__ __forceinline__ void multiply(const T* a_tile, Tile& tile) {
    const T* b_tile = a_tile + ALoader::kTile;
    const int m = threadIdx.x / 32 / kWarpsN * (16 * kRowBlocks), n = threadIdx.x / 32 % kWarpsN * (8 * kColumnBlocks);
#pragma unroll 2  // halves have two; all four of float32 would prefetch more fragments than there are registers
    for (int k = 0; k < kStep; k += M::kDepth) {
      typename M::A a[kRowBlocks];
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
        if constexpr (kATransposed) {
          a[i] = M::load_a_transposed(a_tile, ALoader::kPitch, m + 16 * i, k);
        } else {
          a[i] = M::load_a(a_tile, ALoader::kPitch, m + 16 * i, k);
        }
      }
#pragma unroll
      for (int j = 0; j < kColumnBlocks; j += 2) {
        typename M::B b;
        if constexpr (kBTransposed) {
          b = M::load_b_transposed(b_tile, BLoader::kPitch, n + 8 * j, k);
        } else {
          b = M::load_b(b_tile, BLoader::kPitch, n + 8 * j, k);
        }
#pragma unroll
        for (int i = 0; i < kRowBlocks; ++i) M::product(tile[i][j], tile[i][j + 1], a[i], b);
      }
    }
  }
};

template <typename T, bool kATransposed = false, bool kBTransposed = false>
using LargeGemm = Gemm<T, 128, 128, 4, 2, kATransposed, kBTransposed>;
template <typename T, bool kATransposed = false, bool kBTransposed = false>
using SmallGemm = Gemm<T, 64, 64, 2, 2, kATransposed, kBTransposed>;

// Whether large tiles would leave multiprocessors without work.
inline bool prefers_small_tiles(int64_t m, int64_t n) {
  return ceil_div(m, 128) * ceil_div(n, 128) < 2 * multiprocessors();
}

// Writes a tile, 16 bytes a lane where they are aligned: the lanes of a row exchange their pairs first.
template <typename G, typename Out>
__device__ __forceinline__ void store_tile(const typename G::Tile& tile,
                                           Out* out,  // [rows][columns], `stride` apart: what is left of the matrix
                                           int64_t stride, int rows, int columns, bool vectors) {
#pragma unroll
  for (int i = 0; i < G::kRowBlocks; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = G::row(i, half);
      Out* to = out + row * stride;
#pragma unroll
      for (int j = 0; j < G::kColumnBlocks; j += 4) {
        if constexpr (sizeof(Out) == 2) {
          uint32_t words[4];
#pragma unroll
          for (int q = 0; q < 4; ++q) words[q] = pack<Out>(tile[i][j + q][2 * half], tile[i][j + q][2 * half + 1]);
          transpose(words);
          const int column = G::column(j) + 6 * int(threadIdx.x % 4);  // 8 columns now, of block j + lane % 4
          if (row >= rows) continue;
          if (vectors && column + 8 <= columns) {
            *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
          } else {
#pragma unroll
            for (int e = 0; e < 8; ++e)
              if (column + e < columns)
                reinterpret_cast<uint16_t*>(to)[column + e] = static_cast<uint16_t>(words[e / 2] >> (16 * (e % 2)));
          }
        } else {
          if (row >= rows) continue;
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const int column = G::column(j + q);
            const float *pair = &tile[i][j + q][2 * half];
            if (vectors && column + 2 <= columns) {
              *reinterpret_cast<float2*>(to + column) = make_float2(pair[0], pair[1]);
            } else {
              if (column < columns) to[column] = pair[0];
              if (column + 1 < columns) to[column + 1] = pair[1];
            }
          }
        }
      }
    }
}

// One tile a block. use(G{}, m, n, tile): what becomes of the tile whose first row is m and whose first column is n.
template <typename G, typename Use, typename Keep>
__global__ void __launch_bounds__(G::kThreads, G::kResident)
    product_kernel(Operand<typename G::Type> a, Operand<typename G::Type> b, int depth, bool rows_first, Use use,
                   Keep keep) {
  using T = typename G::Type;
  ICL_DYNAMIC_SHARED(memory);
  const unsigned m_tiles = unsigned(ceil_div(a.rows, G::kM)), block = blockIdx.x;
  const unsigned n_tiles = unsigned(ceil_div(b.rows, G::kN));
  const int64_t m = int64_t{rows_first ? block % m_tiles : block / n_tiles} * G::kM;
  const int64_t n = int64_t{rows_first ? block / m_tiles : block % n_tiles} * G::kN;
  const Product<T> product{a.template from_row<G::kATransposed>(m), b.template from_row<G::kBTransposed>(n), depth};
  G::run(
      reinterpret_cast<T*>(memory), 1, [&](int) { return product; },
      [&](int, typename G::Tile& tile) { use(G{}, m, n, tile); }, keep);
}

// Neighbouring blocks, which run at the same time, share their tile of b if rows_first, else of a: the operand that is
// larger should be the one that is read once.
template <typename T, bool kATransposed, bool kBTransposed, typename Use, typename Keep = EveryDepth>
cudaError_t launch_product(const Operand<T>& a, const Operand<T>& b, int64_t depth, bool rows_first, const Use& use,
                           cudaStream_t stream, const Keep& keep = {}) {
  if (depth > kMaxDepth) return cudaErrorInvalidValue;
  const auto start = [&](auto gemm) {
    using G = decltype(gemm);
    const int64_t blocks = ceil_div(a.rows, G::kM) * ceil_div(b.rows, G::kN);
    return launch(product_kernel<G, Use, Keep>, blocks, G::kThreads, G::kShared, stream, a, b, int(depth), rows_first,
                  use, keep);
  };
  if (prefers_small_tiles(a.rows, b.rows)) return start(SmallGemm<T, kATransposed, kBTransposed>{});
  return start(LargeGemm<T, kATransposed, kBTransposed>{});
}

}  // namespace icl
