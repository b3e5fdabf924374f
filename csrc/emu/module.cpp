// The module icl_fast._emu: the CUDA kernels as the emulator runs them, for tests. The same functions as in
// icl_fast._C, and the emulator's own switches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "cuda/bindings.h"
#include "emu/control.h"

namespace py = pybind11;

PYBIND11_MODULE(_emu, m) {
  icl::bind_cuda(m);
  m.def("set_race", &emu::set_race, py::arg("on"));
  m.def(
      "set_order", [](const std::string& order, unsigned seed) { emu::set_order(order.c_str(), seed); },
      py::arg("order"), py::arg("seed") = 0);
  m.def("set_async", &emu::set_async, py::arg("eager"));
  m.def("set_arithmetic", [](const std::string& name) { emu::set_arithmetic(name.c_str()); }, py::arg("name"));
  m.def("launched", &emu::launched);
  m.def("set_multiprocessors", &emu::set_multiprocessors, py::arg("count"));
  m.def(
      "set_buffers",
      [](const std::vector<std::tuple<uintptr_t, size_t, std::string>>& buffers) {
        static std::vector<std::string> names;  // the emulator keeps pointers to them
        static std::vector<emu::Buffer> table;
        names.clear();
        names.reserve(buffers.size());
        table.clear();
        for (const auto& [address, bytes, name] : buffers) {
          names.push_back(name);
          table.push_back({reinterpret_cast<const void*>(address), bytes, names.back().c_str()});
        }
        emu::set_buffers(table);
      },
      py::arg("buffers"));
}
