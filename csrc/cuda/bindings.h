// The CUDA kernels, bound into icl_fast._C (compiled by nvcc) and into icl_fast._emu (the emulator's build of them).
#pragma once

#include <pybind11/pybind11.h>

namespace icl {

void bind_cuda(pybind11::module_& m);

}  // namespace icl
