// Keyword arguments from Python -> the structs of ops.h. A name in Python is the field's name. A tensor comes as
// (address, element type), so that one in the place of another of a different type does not pass for it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops.h"

namespace icl {

// In the order of Dtype
constexpr const char* kDtypeNames[] = {"float32", "bfloat16", "float16"};

// The arguments of one call, taken by name. TypeError: one is missing, left over or of another type.
class Arguments {
 public:
  Arguments(std::string kernel, const pybind11::kwargs& given) : kernel_(std::move(kernel)), given_(given) {}

  template <typename T>
  T take(const char* name) {
    taken_.push_back(name);
    if constexpr (std::is_pointer_v<T>) {
      return tensor<std::remove_const_t<std::remove_pointer_t<T>>>(name);
    } else if constexpr (std::is_same_v<T, Dtype>) {
      return dtype(name);
    } else {
      return value<T>(name);
    }
  }

  // To be called when all has been taken.
  void finish() const {
    if (given_.size() == taken_.size()) return;
    for (const auto& [key, value] : given_) {
      const std::string name = pybind11::str(key);
      bool known = false;
      for (const char* each : taken_) known |= name == each;
      if (!known) fail("is not one it takes", name);
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& name) const {
    throw pybind11::type_error(kernel_ + ": argument '" + name + "' " + what);
  }

  template <typename T>
  T value(const char* name) const {
    const pybind11::handle object = PyDict_GetItemString(given_.ptr(), name);
    if (!object) fail("is missing", name);
    try {
      return object.cast<T>();
    } catch (const pybind11::cast_error&) {
      fail("cannot be " + std::string(pybind11::repr(object)), name);
    }
  }

  Dtype dtype(const char* argument) const {
    const auto name = value<std::string>(argument);
    for (int i = 0; i < 3; ++i)
      if (name == kDtypeNames[i]) return Dtype(i);
    fail("cannot be '" + name + "'", argument);
  }

  // None is null
  template <typename T>
  T* tensor(const char* name) const {
    if (value<pybind11::handle>(name).is_none()) return nullptr;
    const auto [address, element] = value<std::pair<uintptr_t, std::string>>(name);
    const std::string wanted = element_name<T>();
    if (element != wanted) fail("must be a tensor of " + wanted + ", not " + element, name);
    return reinterpret_cast<T*>(address);
  }

  // What is void in C++ has the dtype of the call.
  template <typename T>
  const char* element_name() const {
    if constexpr (std::is_same_v<T, float>) return "float32";
    if constexpr (std::is_same_v<T, double>) return "float64";
    if constexpr (std::is_same_v<T, int64_t>) return "int64";
    if constexpr (std::is_same_v<T, bool>) return "bool";
    if constexpr (std::is_same_v<T, uint16_t>) return "bfloat16";
    if constexpr (std::is_void_v<T>) return kDtypeNames[int(dtype("dtype"))];
  }

  const std::string kernel_;
  const pybind11::kwargs& given_;
  std::vector<const char*> taken_;
};

// Every field in its order and each name once: another order does not compile, nor, with -Wextra -Werror, a field left
// out.
template <typename P>
P read(Arguments& from);

#define ICL_FIELD(name) .name = from.take<decltype(P::name)>(#name)

template <>
inline FrozenAttention read(Arguments& from) {
  using P = FrozenAttention;
  return {ICL_FIELD(out),        ICL_FIELD(q),      ICL_FIELD(k),      ICL_FIELD(v),
          ICL_FIELD(pattern),    ICL_FIELD(window), ICL_FIELD(rows),   ICL_FIELD(variants),
          ICL_FIELD(batch),      ICL_FIELD(heads),  ICL_FIELD(length), ICL_FIELD(rows_per_example),
          ICL_FIELD(depth),      ICL_FIELD(width),  ICL_FIELD(scale),  ICL_FIELD(dtype),
          ICL_FIELD(products),   ICL_FIELD(num_threads)};
}

template <>
inline SmearedAttentionFwd read(Arguments& from) {
  using P = SmearedAttentionFwd;
  return {ICL_FIELD(q),      ICL_FIELD(k),     ICL_FIELD(v),       ICL_FIELD(gate),  ICL_FIELD(window),
          ICL_FIELD(out),    ICL_FIELD(peak),  ICL_FIELD(log_sum), ICL_FIELD(batch), ICL_FIELD(heads),
          ICL_FIELD(length), ICL_FIELD(depth), ICL_FIELD(scale),   ICL_FIELD(dtype), ICL_FIELD(num_threads)};
}

template <>
inline SmearedAttentionBwd read(Arguments& from) {
  using P = SmearedAttentionBwd;
  return {.forward = read<SmearedAttentionFwd>(from),
          ICL_FIELD(grad_out),
          ICL_FIELD(grad_q),
          ICL_FIELD(grad_k),
          ICL_FIELD(grad_v),
          ICL_FIELD(grad_gate)};
}

template <>
inline LinearCrossEntropyFwd read(Arguments& from) {
  using P = LinearCrossEntropyFwd;
  return {ICL_FIELD(losses),       ICL_FIELD(peak),  ICL_FIELD(log_sum),    ICL_FIELD(hidden), ICL_FIELD(weight),
          ICL_FIELD(targets),      ICL_FIELD(bias),  ICL_FIELD(n),          ICL_FIELD(c),      ICL_FIELD(v),
          ICL_FIELD(ignore_index), ICL_FIELD(dtype), ICL_FIELD(num_threads)};
}

template <>
inline LinearCrossEntropyBwd read(Arguments& from) {
  using P = LinearCrossEntropyBwd;
  return {ICL_FIELD(grad_hidden), ICL_FIELD(grad_weight), ICL_FIELD(grad_bias),    ICL_FIELD(grad_losses),
          ICL_FIELD(hidden),      ICL_FIELD(weight),      ICL_FIELD(targets),      ICL_FIELD(bias),
          ICL_FIELD(losses),      ICL_FIELD(peak),        ICL_FIELD(log_sum),      ICL_FIELD(n),
          ICL_FIELD(c),           ICL_FIELD(v),           ICL_FIELD(ignore_index), ICL_FIELD(dtype),
          ICL_FIELD(num_threads)};
}

template <>
inline LinearCrossEntropyFwdBwd read(Arguments& from) {
  using P = LinearCrossEntropyFwdBwd;
  return {ICL_FIELD(losses), ICL_FIELD(grad_hidden), ICL_FIELD(grad_weight), ICL_FIELD(grad_bias),
          ICL_FIELD(hidden), ICL_FIELD(weight),      ICL_FIELD(targets),     ICL_FIELD(bias),
          ICL_FIELD(n),      ICL_FIELD(c),           ICL_FIELD(v),           ICL_FIELD(ignore_index),
          ICL_FIELD(grad_loss), ICL_FIELD(dtype),    ICL_FIELD(num_threads)};
}

template <>
inline HeadAblation read(Arguments& from) {
  using P = HeadAblation;
  return {ICL_FIELD(base),   ICL_FIELD(losses),  ICL_FIELD(resid),       ICL_FIELD(z),         ICL_FIELD(w_o),
          ICL_FIELD(weight), ICL_FIELD(targets), ICL_FIELD(norm_weight), ICL_FIELD(norm_bias), ICL_FIELD(bias),
          ICL_FIELD(n),      ICL_FIELD(h),       ICL_FIELD(d),           ICL_FIELD(c),         ICL_FIELD(v),
          ICL_FIELD(eps),    ICL_FIELD(dtype),   ICL_FIELD(num_threads)};
}

template <>
inline CrossEntropyDifference read(Arguments& from) {
  using P = CrossEntropyDifference;
  return {ICL_FIELD(base),    ICL_FIELD(difference), ICL_FIELD(hidden),     ICL_FIELD(removed), ICL_FIELD(weight),
          ICL_FIELD(packed),  ICL_FIELD(targets),    ICL_FIELD(bias),       ICL_FIELD(a),       ICL_FIELD(n),
          ICL_FIELD(c),       ICL_FIELD(v),          ICL_FIELD(dtype),      ICL_FIELD(products),
          ICL_FIELD(num_threads)};
}

template <>
inline LayerNormDifference read(Arguments& from) {
  using P = LayerNormDifference;
  return {ICL_FIELD(out), ICL_FIELD(x), ICL_FIELD(removed), ICL_FIELD(weight), ICL_FIELD(a),          ICL_FIELD(n),
          ICL_FIELD(c),   ICL_FIELD(centre), ICL_FIELD(eps), ICL_FIELD(dtype), ICL_FIELD(num_threads)};
}

template <>
inline ActivationDifference read(Arguments& from) {
  using P = ActivationDifference;
  return {ICL_FIELD(out), ICL_FIELD(u), ICL_FIELD(removed),    ICL_FIELD(a),     ICL_FIELD(n),
          ICL_FIELD(m),   ICL_FIELD(activation), ICL_FIELD(dtype), ICL_FIELD(num_threads)};
}

template <>
inline GatedDifference read(Arguments& from) {
  using P = GatedDifference;
  return {ICL_FIELD(out), ICL_FIELD(gate), ICL_FIELD(up),         ICL_FIELD(gate_removed), ICL_FIELD(up_removed),
          ICL_FIELD(a),   ICL_FIELD(n),    ICL_FIELD(m),          ICL_FIELD(activation),   ICL_FIELD(dtype),
          ICL_FIELD(num_threads)};
}

template <>
inline PackWeight read(Arguments& from) {
  using P = PackWeight;
  return {ICL_FIELD(packed), ICL_FIELD(weight), ICL_FIELD(m), ICL_FIELD(c), ICL_FIELD(num_threads)};
}

template <>
inline Project read(Arguments& from) {
  using P = Project;
  return {ICL_FIELD(out), ICL_FIELD(x), ICL_FIELD(weight), ICL_FIELD(packed),   ICL_FIELD(n),
          ICL_FIELD(m),   ICL_FIELD(c), ICL_FIELD(add),    ICL_FIELD(products), ICL_FIELD(num_threads)};
}

template <>
inline ExemplarSteps read(Arguments& from) {
  using P = ExemplarSteps;
  return {ICL_FIELD(losses),        ICL_FIELD(parameters),
          ICL_FIELD(features),      ICL_FIELD(classes),
          ICL_FIELD(exemplars),     ICL_FIELD(labels),
          ICL_FIELD(target),        ICL_FIELD(learning_rates),
          ICL_FIELD(outputs),       ICL_FIELD(previous_token),
          ICL_FIELD(first_layer),   ICL_FIELD(match),
          ICL_FIELD(copy),          ICL_FIELD(no_previous_token),
          ICL_FIELD(heads_scale),   ICL_FIELD(temperature),
          ICL_FIELD(trainable),     ICL_FIELD(l2),
          ICL_FIELD(positions),     ICL_FIELD(cos),
          ICL_FIELD(sin),           ICL_FIELD(steps),
          ICL_FIELD(members),       ICL_FIELD(batch),
          ICL_FIELD(pairs),         ICL_FIELD(exemplars_per_class),
          ICL_FIELD(feature_count), ICL_FIELD(label_count),
          ICL_FIELD(width),         ICL_FIELD(heads),
          ICL_FIELD(layers),        ICL_FIELD(first_step),
          ICL_FIELD(position_kind), ICL_FIELD(norm_eps),
          ICL_FIELD(beta1),         ICL_FIELD(beta2),
          ICL_FIELD(eps),           ICL_FIELD(num_threads)};
}

#undef ICL_FIELD

}  // namespace icl
