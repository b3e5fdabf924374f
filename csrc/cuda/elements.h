// For kernels that go through memory element by element: the widest loads and stores that the addresses allow.
#pragma once

#include "cuda/launch.h"
#include "cuda/tile.h"

namespace icl {

// kCount neighbours, moved as one.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Elements {
  T at[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Elements<T, kCount> load_elements(const T* from) {
  return *reinterpret_cast<const Elements<T, kCount>*>(from);
}

template <int kCount, typename T>
__device__ __forceinline__ void store_elements(T* to, const Elements<T, kCount>& elements) {
  *reinterpret_cast<Elements<T, kCount>*>(to) = elements;
}

}  // namespace icl
