// The module that bench/gpu_tune.py makes of a variant of one op's kernels. It stands in for icl_fast._C, of which it
// has no more than runs them.
#include "cuda/variant.h"

#include "cuda/bindings.h"

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    pybind11::dict info;
    info["cuda"] = true;
    return info;
  });
  m.def("most_shared", [] { return icl::most_shared; });
  icl::bind_cuda(m);
}
