// activation_difference, for the instruction set in use: csrc/activations.h on vectors.
//
// The op moves 2 A + 1 arrays of [N, M] and computes 10 to 80 operations an element, so a thread takes a chunk of u,
// computes what its variants share, and goes through all of them while that stays in its first-level cache.
#include "cpu/activation_vectors.h"
#include "cpu/threads.h"

namespace icl::ICL_ISA {
namespace {

template <typename Kind, typename T>
void forward(const ActivationDifference& p) {
  using At = typename Kind::template At<vf>;
  const T *u = static_cast<const T*>(p.u), *removed = static_cast<const T*>(p.removed);
  T* out = static_cast<T*>(p.out);
  const int64_t size = p.n * p.m, chunks = ceil_div(size, kChunk);
  [[maybe_unused]] const int64_t threads = useful_threads(p.num_threads, chunks, 30 * p.a * size);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * kChunk, end = min(first + kChunk, size);
    At at_u[kChunk / W];
    for (int64_t i = first; i < end; i += W) at_u[(i - first) / W] = At::at(load_some(u + i, end - i), VectorMath{});
    for (int64_t a = 0; a < p.a; ++a)
      for (int64_t i = first; i < end; i += W) {
        const vf du = load_some(removed + a * size + i, end - i);
        store_some(out + a * size + i, activation_difference(at_u[(i - first) / W], du, VectorMath{}), end - i);
      }
  }
}

}  // namespace

void activation_difference(const ActivationDifference& p) {
  with_activation(p.activation, [&p](auto kind) {
    using Kind = decltype(kind);
    p.dtype == Dtype::kBFloat16 ? forward<Kind, uint16_t>(p) : forward<Kind, float>(p);
  });
}

}  // namespace icl::ICL_ISA
