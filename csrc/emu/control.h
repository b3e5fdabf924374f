// What tests set before a launch. No CUDA header, so that the bindings need none.
#pragma once

#include <cstddef>
#include <vector>

namespace emu {

// Global memory that the next launches may touch; anything else outside shared memory and stack is out of bounds.
struct Buffer {
  const void* p;
  size_t bytes;
  const char* name;
};

void set_race(bool on);  // check every access; off: run only
void set_buffers(std::vector<Buffer> buffers);
void set_order(const char* order, unsigned seed);  // of threads and blocks: "asc", "desc" or "random"
void set_async(bool eager);  // asynchronous copies happen when issued, rather than as late as the kernel's waits allow
void set_arithmetic(const char* name);  // of products and 2^x: "float32", "sm_80" or "sm_90" (arithmetic.h)
void set_multiprocessors(int count);
void set_compute_capability(int major, int minor);
std::vector<const char*> launched();  // names of the kernels since set_buffers

}  // namespace emu
