// layer_norm_difference: LN(x) - LN(x - d) for every variant d, by the formula of csrc/cpu/layer_norm_difference.cpp.
//
// A warp takes a row of a variant: four passes over x and d (two where nothing is centred, as in an RMSNorm), of which
// the first brings them from memory and the others find them in the first-level cache, and no barrier. The warps of a
// block take variants of the same row of x, so that memory gives x about once for all of them. Bandwidth: d is read and
// the result written once, a few dozen operations for each element.
#include "cuda/elements.h"
#include "cuda/warp.h"

namespace icl {
namespace {

constexpr int kWarps = 4;

// x - d, and what rounding took from it.
struct Difference {
  float value, rest;

  __device__ __forceinline__ Difference(float x, float d) {
    value = x - d;
    const float taken = value - x;
    rest = (x - (value - taken)) - (d + taken);
  }
};

struct Sums {
  float x = 0, removed = 0, left = 0;

  // Over the lanes of a warp, in each of them, over `count`.
  __device__ __forceinline__ Sums mean(int64_t count) const {
    Sums all = *this;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      all.x += __shfl_xor_sync(kFullWarp, all.x, mask);
      all.removed += __shfl_xor_sync(kFullWarp, all.removed, mask);
      all.left += __shfl_xor_sync(kFullWarp, all.left, mask);
    }
    return {all.x / float(count), all.removed / float(count), all.left / float(count)};
  }
};

// A row of x and of d, from which each pass takes its elements again.
template <int kCount, typename T>
struct Row {
  const T* x;        // [c]
  const T* removed;  // [c]
  int64_t c;

  // The mean of what f(sums, x, d) adds up over the row. The first sums are of short pieces: errors grow with their
  // length.
  template <typename F>
  __device__ __forceinline__ Sums sum(F f) const {
    Sums total;
    for (int64_t first = 0; first < c; first += kPiece) {
      Sums piece;
      const int64_t end = first + kPiece < c ? first + kPiece : c;
      each(first, end, [&](int64_t, int, float x, float d) { f(piece, x, d); });
      total.x += piece.x;
      total.removed += piece.removed;
      total.left += piece.left;
    }
    return total.mean(c);
  }

  // f(column, i, x, d): element i of those from `column` on that this lane takes at once.
  template <typename F>
  __device__ __forceinline__ void each(int64_t begin, int64_t end, F f) const {
    for (int64_t column = begin + threadIdx.x % 32 * kCount; column < end; column += 32 * kCount) {
      const Elements<T, kCount> a = load_elements<kCount>(x + column), b = load_elements<kCount>(removed + column);
#pragma unroll
      for (int i = 0; i < kCount; ++i) f(column, i, to_float(a.at[i]), to_float(b.at[i]));
    }
  }

  static constexpr int64_t kPiece = 32 * 32 * kCount;
};

template <bool kCentre, int kCount, typename T>
__global__ void __launch_bounds__(32 * kWarps) layer_norm_difference_kernel(T* out,            // [variants, n, c]
                                                                            const T* x,        // [n, c]
                                                                            const T* removed,  // [variants, n, c]
                                                                            const T* weight,   // [c] or null
                                                                            int64_t variants, int64_t n, int64_t c,
                                                                            float eps) {
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (task >= variants * n) return;
  const int64_t row = task / variants, at = ((task - row * variants) * n + row) * c;
  const Row<kCount, T> rows{x + row * c, removed + at, c};

  const Sums middle = kCentre ? rows.sum([](Sums& sums, float x, float d) {
    sums.x += x;
    sums.removed += d;
    sums.left += x - d;
  })
                              : Sums{};
  // centred around a mean that is rounded at the size of the row; the second mean is of what that leaves
  const auto nearly_centred = [=](float x, float d) {
    const Difference left(x, d);
    return Sums{x - middle.x, d - middle.removed, (left.value - middle.left) + left.rest};
  };
  const Sums shift = kCentre ? rows.sum([=](Sums& sums, float x, float d) {
    const Sums near = nearly_centred(x, d);
    sums.x += near.x;
    sums.removed += near.removed;
    sums.left += near.left;
  })
                             : Sums{};
  const auto centred = [=](float x, float d) {
    if constexpr (!kCentre) return Sums{x, d, x - d};
    const Sums near = nearly_centred(x, d);
    return Sums{near.x - shift.x, near.removed - shift.removed, near.left - shift.left};
  };
  const Sums squares = rows.sum([=](Sums& sums, float x, float d) {
    const Sums own = centred(x, d);
    sums.x += own.x * own.x;
    sums.removed -= own.removed * (own.x + own.left);  // var' - var
    sums.left += own.left * own.left;
  });

  const float sd = sqrtf(squares.x + eps), sd_left = sqrtf(squares.left + eps);
  const bool wider = sd_left > sd;
  const float direct = 1 / (wider ? sd_left : sd), scaled = squares.removed / (sd + sd_left) / sd / sd_left;
  Elements<T, kCount> result;
  rows.each(0, c, [&](int64_t column, int i, float x, float d) {
    const Sums own = centred(x, d);
    const float gain = weight ? to_float(weight[column + i]) : 1;
    result.at[i] = from_float<T>(gain * (own.removed * direct + (wider ? own.x : own.left) * scaled));
    if (i == kCount - 1) store_elements(out + at + column, result);
  });
}

template <bool kCentre, int kCount, typename T>
cudaError_t launch_with(const LayerNormDifference& p, T, cudaStream_t stream) {
  return launch(layer_norm_difference_kernel<kCentre, kCount, T>, ceil_div(p.a * p.n, kWarps), 32 * kWarps, 0, stream,
                static_cast<T*>(p.out), static_cast<const T*>(p.x), static_cast<const T*>(p.removed),
                static_cast<const T*>(p.weight), p.a, p.n, p.c, p.eps);
}

}  // namespace

size_t layer_norm_difference_workspace(const LayerNormDifference&, int) { return 0; }

cudaError_t launch_layer_norm_difference(const LayerNormDifference& p, void*, int, cudaStream_t stream) {
  if (p.c == 0) return cudaSuccess;
  return with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = vectors_fit(static_cast<const T*>(p.out), p.c) && vectors_fit(static_cast<const T*>(p.x), p.c) &&
                      vectors_fit(static_cast<const T*>(p.removed), p.c);
    constexpr int kWidth = kVectorWidth<T>;
    if (p.centre) return wide ? launch_with<true, kWidth>(p, zero, stream) : launch_with<true, 1>(p, zero, stream);
    return wide ? launch_with<false, kWidth>(p, zero, stream) : launch_with<false, 1>(p, zero, stream);
  });
}

}  // namespace icl
