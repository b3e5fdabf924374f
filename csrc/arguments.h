// Keyword arguments from Python -> the structs of ops.h. A name in Python is the field's name; pointers are integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "ops.h"

namespace icl {

// Looks arguments up by name; one that is missing raises KeyError. Not everything is named twice, as in a signature of
// 20 py::arg: icl_fast/ops/_backend.py is the only caller.
class Arguments {
 public:
  explicit Arguments(const pybind11::kwargs& kwargs) : kwargs_(kwargs) {}

  struct Value {
    pybind11::handle object;
    template <typename T>
    operator T*() const {
      return reinterpret_cast<T*>(object.cast<uintptr_t>());
    }
    operator int64_t() const { return object.cast<int64_t>(); }
    operator int() const { return object.cast<int>(); }
    operator float() const { return object.cast<float>(); }
    operator double() const { return object.cast<double>(); }
    operator Dtype() const { return Dtype(object.cast<int>()); }
  };

  Value operator[](const char* name) const { return {kwargs_[name].ptr()}; }

 private:
  const pybind11::kwargs& kwargs_;
};

template <typename P>
P parse(const Arguments& a);

template <>
inline FrozenAttention parse(const Arguments& a) {
  return {a["out"],    a["q"],     a["k"],      a["v"],     a["pattern"],          a["window"],
          a["rows"],   a["variants"], a["batch"], a["heads"], a["length"],           a["rows_per_example"],
          a["depth"],  a["width"], a["scale"],  a["dtype"], a["num_threads"]};
}

template <>
inline SmearedAttentionFwd parse(const Arguments& a) {
  return {a["q"],       a["k"],     a["v"],     a["gate"],   a["window"], a["out"],   a["peak"],
          a["log_sum"], a["batch"], a["heads"], a["length"], a["depth"],  a["scale"], a["dtype"],
          a["num_threads"]};
}

template <>
inline SmearedAttentionBwd parse(const Arguments& a) {
  return {parse<SmearedAttentionFwd>(a), a["grad_out"], a["grad_q"], a["grad_k"], a["grad_v"], a["grad_gate"]};
}

template <>
inline LinearCrossEntropyFwd parse(const Arguments& a) {
  return {a["losses"], a["peak"], a["log_sum"], a["hidden"], a["weight"],       a["targets"], a["bias"],
          a["n"],      a["c"],    a["v"],       a["ignore_index"], a["dtype"], a["num_threads"]};
}

template <>
inline LinearCrossEntropyBwd parse(const Arguments& a) {
  return {a["grad_hidden"], a["grad_weight"], a["grad_bias"], a["grad_losses"], a["hidden"], a["weight"],
          a["targets"],     a["bias"],        a["losses"],    a["peak"],        a["log_sum"], a["n"],
          a["c"],           a["v"],           a["ignore_index"], a["dtype"],    a["num_threads"]};
}

template <>
inline HeadAblation parse(const Arguments& a) {
  return {a["base"],      a["losses"], a["resid"], a["z"], a["w_o"], a["weight"], a["targets"], a["norm_weight"],
          a["norm_bias"], a["bias"],   a["n"],     a["h"], a["d"],   a["c"],      a["v"],       a["eps"],
          a["dtype"],     a["num_threads"]};
}

template <>
inline CrossEntropyDifference parse(const Arguments& a) {
  return {a["base"], a["difference"], a["hidden"], a["removed"], a["weight"], a["targets"], a["bias"],
          a["a"],    a["n"],          a["c"],      a["v"],       a["dtype"],  a["num_threads"]};
}

template <>
inline LayerNormDifference parse(const Arguments& a) {
  return {a["out"], a["x"], a["removed"], a["weight"], a["a"], a["n"], a["c"], a["eps"], a["dtype"], a["num_threads"]};
}

template <>
inline GeluDifference parse(const Arguments& a) {
  return {a["out"], a["u"], a["removed"], a["a"], a["n"], a["m"], a["tanh"], a["dtype"], a["num_threads"]};
}

template <>
inline ExemplarSteps parse(const Arguments& a) {
  return {a["losses"],         a["parameters"],  a["features"],      a["classes"],        a["exemplars"],
          a["labels"],         a["target"],      a["learning_rates"], a["outputs"],       a["previous_token"],
          a["first_layer"],    a["match"],       a["copy"],          a["no_previous_token"], a["heads_scale"],
          a["temperature"],    a["trainable"],   a["l2"],            a["positions"],      a["cos"],
          a["sin"],            a["steps"],       a["members"],       a["batch"],          a["pairs"],
          a["exemplars_per_class"], a["feature_count"], a["label_count"], a["width"],     a["heads"],
          a["layers"],         a["first_step"],        a["position_kind"], a["norm_eps"],       a["beta1"],
          a["beta2"],          a["eps"],         a["threads"]};
}

}  // namespace icl
