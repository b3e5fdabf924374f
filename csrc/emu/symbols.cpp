#include "emu/symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, __bss_start, _end;

namespace emu {
namespace {

std::string demangled(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string name = text ? text : symbol;
  std::free(text);
  return name;
}

template <class T>
const T* at(const std::vector<char>& file, uint64_t offset, uint64_t count = 1) {
  if (offset > file.size() || count > (file.size() - offset) / sizeof(T)) return nullptr;
  return reinterpret_cast<const T*>(file.data() + offset);
}

// A static variable in a function is a local object whose mangled name begins with _ZZ; uninitialised, as __shared__
// always is, it lies in .bss. Those of the emulator itself and of libraries are not the kernels'.
bool may_be_shared(const Elf64_Sym& symbol, const char* name) {
  if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || symbol.st_size == 0) return false;
  if (std::strncmp(name, "_ZZ", 3)) return false;
  for (const char* foreign : {"_ZZN3emu", "_ZZN8pybind11", "_ZZNSt", "_ZZNKSt", "_ZZN9__gnu_cxx"}) {
    if (!std::strncmp(name, foreign, std::strlen(foreign))) return false;
  }
  return true;
}

std::vector<Symbol> read_symbols() {
  Dl_info info;
  if (!dladdr(&__ehdr_start, &info) || !info.dli_fname) return {};
  std::ifstream stream(info.dli_fname, std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto* header = at<Elf64_Ehdr>(file, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG)) return {};
  const auto* sections = at<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
  if (!sections) return {};

  const auto base = reinterpret_cast<uintptr_t>(&__ehdr_start);
  const auto bss_begin = reinterpret_cast<uintptr_t>(&__bss_start), bss_end = reinterpret_cast<uintptr_t>(&_end);
  std::vector<Symbol> found;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_link >= header->e_shnum) continue;
    const Elf64_Shdr& names = sections[sections[i].sh_link];
    const uint64_t count = sections[i].sh_size / sizeof(Elf64_Sym);
    const auto* symbols = at<Elf64_Sym>(file, sections[i].sh_offset, count);
    if (!symbols || !at<char>(file, names.sh_offset, names.sh_size)) continue;
    for (uint64_t k = 0; k < count; ++k) {
      if (symbols[k].st_name >= names.sh_size) continue;
      const char* name = file.data() + names.sh_offset + symbols[k].st_name;
      const uintptr_t begin = base + symbols[k].st_value, end = begin + symbols[k].st_size;
      if (begin < bss_begin || end > bss_end || !may_be_shared(symbols[k], name)) continue;
      found.push_back({begin, end, demangled(name)});
    }
  }
  std::sort(found.begin(), found.end(), [](const Symbol& a, const Symbol& b) { return a.begin < b.begin; });
  return found;
}

}  // namespace

const std::vector<Symbol>& static_shared() {
  static const std::vector<Symbol> symbols = read_symbols();
  return symbols;
}

}  // namespace emu
