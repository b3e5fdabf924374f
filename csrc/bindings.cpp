// The module icl_fast._C. Pointers arrive as integers: icl_fast/ops validates shapes, dtypes and devices in Python,
// where the message can name the argument. Only icl_fast/ops/_backend.py imports this module.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = ICL_COMPILER;
  info["pybind11"] = ICL_PYBIND11;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef ICL_CUDA
  info["cuda"] = true;
  info["cuda_archs"] = py::str(ICL_CUDA_ARCHS).attr("split")();
  info["nvcc"] = ICL_NVCC;
#else
  info["cuda"] = false;
  info["cuda_archs"] = py::list();
  info["nvcc"] = py::none();
#endif
  return info;
}

// Devices that the driver offers; 0 where there is no driver or no CUDA build.
int cuda_device_count() {
  int count = 0;
#ifdef ICL_CUDA
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // else the next launch would report this failure as its own
    count = 0;
  }
#endif
  return count;
}

#ifdef ICL_CUDA
void check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  std::string message = std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(status);
  if (cuda_device_count() == 0) message += " (this machine has no CUDA device, or no driver for it)";
  throw std::runtime_error(message);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  m.def("cuda_device_count", &cuda_device_count);

  m.def(
      "axpy_cpu",
      [](uintptr_t out, uintptr_t x, uintptr_t y, int64_t n, float a, int num_threads) {
        py::gil_scoped_release release;
        icl::axpy_cpu(pointer<float>(out), pointer<const float>(x), pointer<const float>(y), n, a, num_threads);
      },
      py::arg("out"), py::arg("x"), py::arg("y"), py::arg("n"), py::arg("a"), py::arg("num_threads"));

#ifdef ICL_CUDA
  m.def(
      "axpy",
      [](uintptr_t out, uintptr_t x, uintptr_t y, int64_t n, float a, uintptr_t stream) {
        check(icl::launch_axpy(pointer<float>(out), pointer<const float>(x), pointer<const float>(y), n, a,
                               reinterpret_cast<cudaStream_t>(stream)),
              "axpy");
      },
      py::arg("out"), py::arg("x"), py::arg("y"), py::arg("n"), py::arg("a"), py::arg("stream"));
#endif
}
