#include "cuda/bindings.h"

#include <stdexcept>
#include <string>

#include "arguments.h"
#include "cuda/not_built.h"
#include "hardware/runtime.h"

namespace py = pybind11;

namespace icl {
namespace {

// Devices that the driver offers; 0 where there is no driver.
int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // else the next launch would report this failure as its own
    count = 0;
  }
  return count;
}

void check(cudaError_t status, const std::string& op) {
  if (status == cudaSuccess) return;
  std::string message = op + ": CUDA launch failed: " + cudaGetErrorString(status);
  if (device_count() == 0) message += " (this machine has no CUDA device, or no driver for it)";
  throw std::runtime_error(message);
}

// `name`_workspace: the bytes of scratch memory that a call of `name` with the same arguments needs. Neither where the
// kernel did not compile.
template <typename P>
void def_cuda(py::module_& m, const std::string& name, size_t (*workspace)(const P&, int),
              cudaError_t (*launch)(const P&, void*, int, cudaStream_t)) {
  if (!workspace || !launch) return;
  m.def((name + "_workspace").c_str(), [name, workspace](const py::kwargs& kwargs) {
    Arguments from(name + "_workspace", kwargs);
    const P p = read<P>(from);
    const int arch = from.take<int>("arch");
    from.finish();
    return workspace(p, arch);
  });
  m.def((name + "_cuda").c_str(), [name, launch](const py::kwargs& kwargs) {
    Arguments from(name + "_cuda", kwargs);
    const P p = read<P>(from);
    const int arch = from.take<int>("arch");
    const auto memory = reinterpret_cast<void*>(from.take<uintptr_t>("workspace"));
    const auto stream = reinterpret_cast<cudaStream_t>(from.take<uintptr_t>("stream"));
    from.finish();
    check(launch(p, memory, arch, stream), name);
  });
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_device_count", &device_count);
  m.def("not_built", [] {
    py::dict reasons;
    for (const auto& [source, why] : NotBuilt::all()) reasons[py::str(source)] = why;
    return reasons;
  });
  if (launch_axpy) {
    m.def(
        "axpy_cuda",
        [](uintptr_t out, uintptr_t x, uintptr_t y, int64_t n, float a, uintptr_t stream) {
          check(launch_axpy(reinterpret_cast<float*>(out), reinterpret_cast<const float*>(x),
                            reinterpret_cast<const float*>(y), n, a, reinterpret_cast<cudaStream_t>(stream)),
                "axpy");
        },
        py::arg("out"), py::arg("x"), py::arg("y"), py::arg("n"), py::arg("a"), py::arg("stream"));
  }
  def_cuda<FrozenAttention>(m, "frozen_attention", frozen_attention_workspace, launch_frozen_attention);
  def_cuda<SmearedAttentionFwd>(m, "smeared_attention_fwd", smeared_attention_fwd_workspace,
                                launch_smeared_attention_fwd);
  def_cuda<SmearedAttentionBwd>(m, "smeared_attention_bwd", smeared_attention_bwd_workspace,
                                launch_smeared_attention_bwd);
  def_cuda<LinearCrossEntropyFwd>(m, "linear_cross_entropy_fwd", linear_cross_entropy_fwd_workspace,
                                  launch_linear_cross_entropy_fwd);
  def_cuda<LinearCrossEntropyBwd>(m, "linear_cross_entropy_bwd", linear_cross_entropy_bwd_workspace,
                                  launch_linear_cross_entropy_bwd);
  def_cuda<HeadAblation>(m, "head_ablation_cross_entropy", head_ablation_cross_entropy_workspace,
                         launch_head_ablation_cross_entropy);
  def_cuda<LayerNormDifference>(m, "layer_norm_difference", layer_norm_difference_workspace,
                                launch_layer_norm_difference);
  def_cuda<ActivationDifference>(m, "activation_difference", activation_difference_workspace,
                                 launch_activation_difference);
  def_cuda<GatedDifference>(m, "gated_difference", gated_difference_workspace, launch_gated_difference);
  def_cuda<CrossEntropyDifference>(m, "cross_entropy_difference", cross_entropy_difference_workspace,
                                   launch_cross_entropy_difference);
}

}  // namespace icl
