// The module icl_fast._C. Tensors arrive as addresses: icl_fast/ops validates shapes, dtypes and devices in Python,
// where the message can name the argument. Only icl_fast/ops/_backend.py imports this module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "arguments.h"
#include "cpu/bfloat16_tile.h"
#include "cpu/isa.h"
#ifdef ICL_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

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

void set_isa(const std::string& name) {
  if (!icl::set_isa(name)) throw std::invalid_argument("set_isa: this machine has no '" + name + "'; see isas()");
}

// For tests: what the tile kernel of the instruction set in use makes of packed operands.
void bfloat16_product(uintptr_t out, uintptr_t a, uintptr_t panels, int64_t rows, int64_t a_step, int64_t count,
                      int64_t depth, int64_t out_step, bool add) {
  const icl::Bfloat16Tile* tile = icl::bfloat16_tile();
  if (!tile) throw std::invalid_argument("bfloat16_product: '" + icl::current_isa_name() + "' has no tile kernel");
  tile->multiply(reinterpret_cast<const uint16_t*>(a), a_step, rows, reinterpret_cast<const uint16_t*>(panels), count,
                 depth, reinterpret_cast<float*>(out), out_step, add);
}

template <typename P>
void def_cpu(py::module_& m, const char* name, void (*kernel)(const P&)) {
  m.def(name, [name, kernel](const py::kwargs& kwargs) {
    icl::Arguments from(name, kwargs);
    const P p = icl::read<P>(from);
    from.finish();
    const py::gil_scoped_release release;
    kernel(p);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  m.def("isas", &icl::isa_names);
  m.def("emulated_isas", &icl::emulated_names);
  m.def("isa", &icl::current_isa_name);
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("bfloat16_product", &bfloat16_product, py::arg("out"), py::arg("a"), py::arg("panels"), py::arg("rows"),
        py::arg("a_step"), py::arg("count"), py::arg("depth"), py::arg("out_step"), py::arg("add"));
  m.def("emulated_tile_configurations", &icl::emulated::tile_configurations);
  m.def("emulated_tiles_in_use", &icl::emulated::tiles_in_use);

  m.def(
      "axpy_cpu",
      [](uintptr_t out, uintptr_t x, uintptr_t y, int64_t n, float a, int num_threads) {
        icl::axpy_cpu(reinterpret_cast<float*>(out), reinterpret_cast<const float*>(x),
                      reinterpret_cast<const float*>(y), n, a, num_threads);
      },
      py::arg("out"), py::arg("x"), py::arg("y"), py::arg("n"), py::arg("a"), py::arg("num_threads"));

  def_cpu<icl::LinearCrossEntropyFwd>(m, "linear_cross_entropy_fwd_cpu", icl::linear_cross_entropy_fwd_cpu);
  def_cpu<icl::LinearCrossEntropyBwd>(m, "linear_cross_entropy_bwd_cpu", icl::linear_cross_entropy_bwd_cpu);
  def_cpu<icl::LinearCrossEntropyFwdBwd>(m, "linear_cross_entropy_fwd_bwd_cpu", icl::linear_cross_entropy_fwd_bwd_cpu);
  def_cpu<icl::HeadAblation>(m, "head_ablation_cross_entropy_cpu", icl::head_ablation_cross_entropy_cpu);
  def_cpu<icl::CrossEntropyDifference>(m, "cross_entropy_difference_cpu", icl::cross_entropy_difference_cpu);
  def_cpu<icl::FrozenAttention>(m, "frozen_attention_cpu", icl::frozen_attention_cpu);
  def_cpu<icl::SmearedAttentionFwd>(m, "smeared_attention_fwd_cpu", icl::smeared_attention_fwd_cpu);
  def_cpu<icl::SmearedAttentionBwd>(m, "smeared_attention_bwd_cpu", icl::smeared_attention_bwd_cpu);
  def_cpu<icl::LayerNormDifference>(m, "layer_norm_difference_cpu", icl::layer_norm_difference_cpu);
  def_cpu<icl::ActivationDifference>(m, "activation_difference_cpu", icl::activation_difference_cpu);
  def_cpu<icl::GatedDifference>(m, "gated_difference_cpu", icl::gated_difference_cpu);
  def_cpu<icl::PackWeight>(m, "pack_weight_cpu", icl::pack_weight_cpu);
  def_cpu<icl::Project>(m, "project_cpu", icl::project_cpu);
  def_cpu<icl::ExemplarSteps>(m, "exemplar_steps_cpu", icl::exemplar_steps_cpu);

#ifdef ICL_CUDA
  icl::bind_cuda(m);
#endif
}
