// gelu_difference, for the instruction set in use: csrc/gelu.h on vectors.
//
// The op moves 2 A + 1 arrays of [N, M] and computes 30 to 80 operations an element, so a thread takes a chunk of u
// that stays in its first-level cache and goes through all variants of it.
#include <cstdint>

#include "cpu/rows.h"
#include "gelu.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kChunk = 2048;  // elements of u

struct VectorMath {
  ICL_INLINE vf exp(vf x) const { return exp_nonpositive(x); }

  // e^x - 1 for x <= 0, with e^x = 2^n e^r, n = round(x / ln 2): 2^n (e^r - 1) + (2^n - 1), where n = 0 near x = 0,
  // and elsewhere the second part is at least twice the first
  ICL_INLINE vf expm1(vf x) const {
    x = at_least(splat(-87.0f), x);
    const vf shift = splat(12582912.0f + 127.0f);  // its low bits are 127, the bias of a float's exponent
    const vf shifted = x * splat(1.44269504f) + shift, n = shifted - shift;
    vf r = x - n * splat(0.693359375f);  // ln 2 in two parts: the first product is exact
    r = r + n * splat(2.12194440e-4f);
    vf p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r;
    const vf power = (vf)((vi)shifted << 23);
    return p * power + (power - splat(1.0f));
  }

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
    store_narrow(out + i, gelu_difference<kTanh>(load(u + i), load(removed + i), VectorMath{}));
  if (i == count) return;
  T a[W] = {}, b[W] = {}, result[W];
  for (int64_t j = 0; j < count - i; ++j) {
    a[j] = u[i + j];
    b[j] = removed[i + j];
  }
  store_narrow(result, gelu_difference<kTanh>(load(a), load(b), VectorMath{}));
  for (int64_t j = 0; j < count - i; ++j) out[i + j] = result[j];
}

template <bool kTanh, typename T>
void forward(const GeluDifference& p) {
  const T *u = static_cast<const T*>(p.u), *removed = static_cast<const T*>(p.removed);
  T* out = static_cast<T*>(p.out);
  const int64_t size = p.n * p.m, chunks = (size + kChunk - 1) / kChunk;
  [[maybe_unused]] const int64_t threads = useful_threads(p.num_threads, chunks, 30 * p.a * size);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * kChunk, count = size - first < kChunk ? size - first : kChunk;
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
