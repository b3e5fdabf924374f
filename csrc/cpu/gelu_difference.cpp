// gelu_difference, for the instruction set in use: csrc/gelu.h on vectors.
//
// The op moves 2 A + 1 arrays of [N, M] and computes 30 to 80 operations an element, so a thread takes a chunk of u
// that stays in its first-level cache and goes through all variants of it.
#include <cstdint>

#include "cpu/simd.h"
#include "cpu/threads.h"
#include "cpu/vector_math.h"
#include "gelu.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kChunk = 2048;  // elements of u

struct VectorMath {
  ICL_INLINE vf exp(vf x) const { return exp_nonpositive(x); }

  ICL_INLINE vf expm1(vf x) const { return expm1_nonpositive(x); }

  ICL_INLINE bool any(vi condition) const {
    int64_t words[W / 2], some = 0;
    std::memcpy(words, &condition, sizeof words);
    for (int i = 0; i < W / 2; ++i) some |= words[i];
    return some != 0;
  }
};

template <bool kTanh, typename T>
void run_chunk(const T* u, const T* removed, T* out, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W)
    store(out + i, gelu_difference<kTanh>(load(u + i), load(removed + i), VectorMath{}));
  if (i == count) return;
  T a[W] = {}, b[W] = {}, result[W];
  for (int64_t j = 0; j < count - i; ++j) {
    a[j] = u[i + j];
    b[j] = removed[i + j];
  }
  store(result, gelu_difference<kTanh>(load(a), load(b), VectorMath{}));
  for (int64_t j = 0; j < count - i; ++j) out[i + j] = result[j];
}

template <bool kTanh, typename T>
void forward(const GeluDifference& p) {
  const T *u = static_cast<const T*>(p.u), *removed = static_cast<const T*>(p.removed);
  T* out = static_cast<T*>(p.out);
  const int64_t size = p.n * p.m, chunks = ceil_div(size, kChunk);
  [[maybe_unused]] const int64_t threads = useful_threads(p.num_threads, chunks, 30 * p.a * size);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * kChunk, count = min(size - first, kChunk);
    for (int64_t a = 0; a < p.a; ++a)
      run_chunk<kTanh>(u + first, removed + a * size + first, out + a * size + first, count);
  }
}

}  // namespace

void gelu_difference(const GeluDifference& p) {
  if (p.dtype == Dtype::kBFloat16) {
    p.tanh ? forward<true, uint16_t>(p) : forward<false, uint16_t>(p);
  } else {
    p.tanh ? forward<true, float>(p) : forward<false, float>(p);
  }
}

}  // namespace icl::ICL_ISA
