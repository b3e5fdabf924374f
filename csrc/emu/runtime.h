// The part of CUDA's host API that launchers use.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstring>

namespace emu {
void allow_dynamic_shared(int bytes);
int device_attribute(cudaDeviceAttr attribute);
}  // namespace emu

// Always inlined: CUDA's headers declare these extern "C", and a call through the symbol could reach a real CUDA
// runtime that the process has loaded.
#define EMU_ALWAYS_INLINE __attribute__((always_inline)) inline

EMU_ALWAYS_INLINE cudaError_t cudaGetLastError() { return cudaSuccess; }
EMU_ALWAYS_INLINE cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
EMU_ALWAYS_INLINE const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
EMU_ALWAYS_INLINE cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
EMU_ALWAYS_INLINE cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
EMU_ALWAYS_INLINE cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = emu::device_attribute(attribute);
  return cudaSuccess;
}
template <class Kernel>
EMU_ALWAYS_INLINE cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) emu::allow_dynamic_shared(value);
  return cudaSuccess;
}
EMU_ALWAYS_INLINE cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
