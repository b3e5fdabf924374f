// The module icl_fast._C. Pointers arrive as integers: icl_fast/ops validates shapes, dtypes and devices in Python,
// where the message can name the argument. Only icl_fast/ops/_backend.py imports this module.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
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

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};  // in the order of icl::Isa

py::list isas() {
  py::list names;
  for (int isa = 0; isa <= int(icl::best_isa()); ++isa) names.append(kIsaNames[isa]);
  return names;
}

std::string isa() { return kIsaNames[int(icl::current_isa())]; }

void set_isa(const std::string& name) {
  for (int isa = 0; isa <= int(icl::best_isa()); ++isa)
    if (name == kIsaNames[isa]) {
      icl::set_isa(icl::Isa(isa));
      return;
    }
  throw std::invalid_argument("set_isa: this machine has no '" + name + "'; see isas()");
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
  m.def("isas", &isas);
  m.def("isa", &isa);
  m.def("set_isa", &set_isa, py::arg("name"));

  m.def(
      "axpy_cpu",
      [](uintptr_t out, uintptr_t x, uintptr_t y, int64_t n, float a, int num_threads) {
        py::gil_scoped_release release;
        icl::axpy_cpu(pointer<float>(out), pointer<const float>(x), pointer<const float>(y), n, a, num_threads);
      },
      py::arg("out"), py::arg("x"), py::arg("y"), py::arg("n"), py::arg("a"), py::arg("num_threads"));

  m.def(
      "linear_cross_entropy_fwd_cpu",
      [](uintptr_t losses, uintptr_t peak, uintptr_t log_sum, uintptr_t hidden, uintptr_t weight, uintptr_t targets,
         uintptr_t bias, int64_t n, int64_t c, int64_t v, int64_t ignore_index, bool bf16, int num_threads) {
        py::gil_scoped_release release;
        icl::linear_cross_entropy_fwd_cpu({pointer<float>(losses), pointer<float>(peak), pointer<float>(log_sum),
                                           pointer<void>(hidden), pointer<void>(weight),
                                           pointer<const int64_t>(targets), pointer<void>(bias), n, c, v, ignore_index,
                                           bf16, num_threads});
      },
      py::kw_only(), py::arg("losses"), py::arg("peak"), py::arg("log_sum"), py::arg("hidden"), py::arg("weight"),
      py::arg("targets"), py::arg("bias"), py::arg("n"), py::arg("c"), py::arg("v"), py::arg("ignore_index"),
      py::arg("bf16"), py::arg("num_threads"));

  m.def(
      "linear_cross_entropy_bwd_cpu",
      [](uintptr_t grad_hidden, uintptr_t grad_weight, uintptr_t grad_bias, uintptr_t grad_losses, uintptr_t hidden,
         uintptr_t weight, uintptr_t targets, uintptr_t bias, uintptr_t losses, uintptr_t peak, uintptr_t log_sum,
         int64_t n, int64_t c, int64_t v, int64_t ignore_index, bool bf16, int num_threads) {
        py::gil_scoped_release release;
        icl::linear_cross_entropy_bwd_cpu(
            {pointer<void>(grad_hidden), pointer<void>(grad_weight), pointer<void>(grad_bias),
             pointer<const float>(grad_losses), pointer<void>(hidden), pointer<void>(weight),
             pointer<const int64_t>(targets), pointer<void>(bias), pointer<const float>(losses),
             pointer<const float>(peak), pointer<const float>(log_sum), n, c, v, ignore_index, bf16, num_threads});
      },
      py::kw_only(), py::arg("grad_hidden"), py::arg("grad_weight"), py::arg("grad_bias"), py::arg("grad_losses"),
      py::arg("hidden"), py::arg("weight"), py::arg("targets"), py::arg("bias"), py::arg("losses"), py::arg("peak"),
      py::arg("log_sum"), py::arg("n"), py::arg("c"), py::arg("v"), py::arg("ignore_index"), py::arg("bf16"),
      py::arg("num_threads"));

  m.def(
      "head_ablation_cross_entropy_cpu",
      [](uintptr_t base, uintptr_t losses, uintptr_t resid, uintptr_t z, uintptr_t w_o, uintptr_t weight,
         uintptr_t targets, uintptr_t norm_weight, uintptr_t norm_bias, uintptr_t bias, int64_t n, int64_t h, int64_t d,
         int64_t c, int64_t v, float eps, bool bf16, int num_threads) {
        py::gil_scoped_release release;
        icl::head_ablation_cross_entropy_cpu(
            {pointer<float>(base), pointer<float>(losses), pointer<void>(resid), pointer<void>(z), pointer<void>(w_o),
             pointer<void>(weight), pointer<const int64_t>(targets), pointer<void>(norm_weight),
             pointer<void>(norm_bias), pointer<void>(bias), n, h, d, c, v, eps, bf16, num_threads});
      },
      py::kw_only(), py::arg("base"), py::arg("losses"), py::arg("resid"), py::arg("z"), py::arg("w_o"),
      py::arg("weight"), py::arg("targets"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("bias"),
      py::arg("n"), py::arg("h"), py::arg("d"), py::arg("c"), py::arg("v"), py::arg("eps"), py::arg("bf16"),
      py::arg("num_threads"));

  m.def(
      "frozen_attention_cpu",
      [](uintptr_t out, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t pattern, uintptr_t window, uintptr_t rows,
         int64_t variants, int64_t batch, int64_t heads, int64_t length, int64_t rows_per_example, int64_t depth,
         int64_t width, float scale, bool bf16, int num_threads) {
        py::gil_scoped_release release;
        icl::frozen_attention_cpu({pointer<void>(out), pointer<void>(q), pointer<void>(k), pointer<void>(v),
                                   pointer<void>(pattern), pointer<const int64_t>(window), pointer<const int64_t>(rows),
                                   variants, batch, heads, length, rows_per_example, depth, width, scale, bf16,
                                   num_threads});
      },
      py::kw_only(), py::arg("out"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("pattern"), py::arg("window"),
      py::arg("rows"), py::arg("variants"), py::arg("batch"), py::arg("heads"), py::arg("length"),
      py::arg("rows_per_example"), py::arg("depth"), py::arg("width"), py::arg("scale"), py::arg("bf16"),
      py::arg("num_threads"));

  m.def(
      "smeared_attention_cpu",
      [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t gate, uintptr_t window, uintptr_t out, uintptr_t peak,
         uintptr_t log_sum, int64_t batch, int64_t heads, int64_t length, int64_t depth, float scale, bool bf16,
         int num_threads) {
        py::gil_scoped_release release;
        icl::smeared_attention_cpu({pointer<void>(q), pointer<void>(k), pointer<void>(v), pointer<float>(gate),
                                    pointer<const int64_t>(window), pointer<void>(out), pointer<float>(peak),
                                    pointer<float>(log_sum), batch, heads, length, depth, scale, bf16, num_threads});
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("gate"), py::arg("window"), py::arg("out"),
      py::arg("peak"), py::arg("log_sum"), py::arg("batch"), py::arg("heads"), py::arg("length"), py::arg("depth"),
      py::arg("scale"), py::arg("bf16"), py::arg("num_threads"));

  m.def(
      "smeared_attention_backward_cpu",
      [](uintptr_t grad_out, uintptr_t grad_q, uintptr_t grad_k, uintptr_t grad_v, uintptr_t grad_gate, uintptr_t q,
         uintptr_t k, uintptr_t v, uintptr_t gate, uintptr_t window, uintptr_t out, uintptr_t peak, uintptr_t log_sum,
         int64_t batch, int64_t heads, int64_t length, int64_t depth, float scale, bool bf16, int num_threads) {
        py::gil_scoped_release release;
        icl::smeared_attention_backward_cpu(
            {{pointer<void>(q), pointer<void>(k), pointer<void>(v), pointer<float>(gate),
              pointer<const int64_t>(window), pointer<void>(out), pointer<float>(peak), pointer<float>(log_sum), batch,
              heads, length, depth, scale, bf16, num_threads},
             pointer<void>(grad_out), pointer<void>(grad_q), pointer<void>(grad_k), pointer<void>(grad_v),
             pointer<double>(grad_gate)});
      },
      py::kw_only(), py::arg("grad_out"), py::arg("grad_q"), py::arg("grad_k"), py::arg("grad_v"),
      py::arg("grad_gate"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("gate"), py::arg("window"),
      py::arg("out"), py::arg("peak"), py::arg("log_sum"), py::arg("batch"), py::arg("heads"), py::arg("length"),
      py::arg("depth"), py::arg("scale"), py::arg("bf16"), py::arg("num_threads"));

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
