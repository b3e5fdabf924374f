// gated_difference, for the instruction set in use: csrc/activations.h on vectors.
//
// The op moves 3 A + 2 arrays of [N, M] once; chunks as in activation_difference.cpp.
#include "cpu/activation_vectors.h"
#include "cpu/threads.h"

namespace icl::ICL_ISA {
namespace {

template <typename Kind, typename T>
void forward(const GatedDifference& p) {
  using At = typename Kind::template At<vf>;
  const T *gate = static_cast<const T*>(p.gate), *up = static_cast<const T*>(p.up);
  const T *gate_removed = static_cast<const T*>(p.gate_removed), *up_removed = static_cast<const T*>(p.up_removed);
  T* out = static_cast<T*>(p.out);
  const int64_t size = p.n * p.m, chunks = ceil_div(size, kChunk);
  [[maybe_unused]] const int64_t threads = useful_threads(p.num_threads, chunks, 30 * p.a * size);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * kChunk, end = min(first + kChunk, size);
    At gates[kChunk / W];
    for (int64_t i = first; i < end; i += W)
      gates[(i - first) / W] = At::at(load_some(gate + i, end - i), VectorMath{});
    for (int64_t a = 0; a < p.a; ++a)
      for (int64_t i = first; i < end; i += W) {
        const int64_t at = a * size + i, count = end - i;
        const vf change = load_some(gate_removed + at, count), up_change = load_some(up_removed + at, count);
        const At& of = gates[(i - first) / W];
        store_some(out + at, gated_difference(of, load_some(up + i, count), change, up_change, VectorMath{}), count);
      }
  }
}

}  // namespace

void gated_difference(const GatedDifference& p) {
  with_activation(p.activation, [&p](auto kind) {
    using Kind = decltype(kind);
    p.dtype == Dtype::kBFloat16 ? forward<Kind, uint16_t>(p) : forward<Kind, float>(p);
  });
}

}  // namespace icl::ICL_ISA
