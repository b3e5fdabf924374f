// What the symbol table of the module tells: its static variables that kernels call __shared__, names of kernels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emu {

struct Symbol {
  uintptr_t begin, end;
  std::string name;
};
const std::vector<Symbol>& static_shared();  // by address; empty if the module was stripped


}  // namespace emu
