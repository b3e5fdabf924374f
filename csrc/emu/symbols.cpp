#include "emu/symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

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

// f(symbol, its name, address of its first byte) for every symbol of the module.
template <class F>
void for_each_symbol(F f) {
  Dl_info info;
  if (!dladdr(&__ehdr_start, &info) || !info.dli_fname) return;
  std::ifstream stream(info.dli_fname, std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto* header = at<Elf64_Ehdr>(file, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG)) return;
  const auto* sections = at<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
  if (!sections) return;

  const auto base = reinterpret_cast<uintptr_t>(&__ehdr_start);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_link >= header->e_shnum) continue;
    const Elf64_Shdr& names = sections[sections[i].sh_link];
    const uint64_t count = sections[i].sh_size / sizeof(Elf64_Sym);
    const auto* symbols = at<Elf64_Sym>(file, sections[i].sh_offset, count);
    if (!symbols || !at<char>(file, names.sh_offset, names.sh_size)) continue;
    for (uint64_t k = 0; k < count; ++k) {
      if (symbols[k].st_name >= names.sh_size) continue;
      const char* name = file.data() + names.sh_offset + symbols[k].st_name;
      f(symbols[k], name, base + symbols[k].st_value);
    }
  }
}

std::vector<Symbol> read_shared() {
  const auto bss_begin = reinterpret_cast<uintptr_t>(&__bss_start), bss_end = reinterpret_cast<uintptr_t>(&_end);
  std::vector<Symbol> found;
  for_each_symbol([&](const Elf64_Sym& symbol, const char* name, uintptr_t begin) {
    const uintptr_t end = begin + symbol.st_size;
    if (begin < bss_begin || end > bss_end || !may_be_shared(symbol, name)) return;
    found.push_back({begin, end, demangled(name)});
  });
  std::sort(found.begin(), found.end(), [](const Symbol& a, const Symbol& b) { return a.begin < b.begin; });
  return found;
}

std::map<uintptr_t, std::string> read_functions() {
  std::map<uintptr_t, std::string> found;
  for_each_symbol([&](const Elf64_Sym& symbol, const char* name, uintptr_t begin) {
    if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_shndx != SHN_UNDEF) found.emplace(begin, name);
  });
  return found;
}

// Without what it returns, its namespaces and its parameters.
std::string short_name(std::string name) {
  for (const std::string longer : {"(anonymous namespace)::", "icl::", "void "}) {
    for (size_t i; (i = name.find(longer)) != std::string::npos;) name.erase(i, longer.size());
  }
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (depth == 0 && name[i] == '(') return name.substr(0, i);
  }
  return name;
}

}  // namespace

const std::vector<Symbol>& static_shared() {
  static const std::vector<Symbol> symbols = read_shared();
  return symbols;
}

const char* kernel_name(const void* kernel, const char* otherwise) {
  static const std::map<uintptr_t, std::string> functions = read_functions();
  static std::map<const void*, std::string> names;
  const auto function = functions.find(reinterpret_cast<uintptr_t>(kernel));
  if (function == functions.end()) return otherwise;
  const auto [name, fresh] = names.try_emplace(kernel);
  if (fresh) name->second = short_name(demangled(function->second.c_str()));
  return name->second.c_str();
}

}  // namespace emu
