// What the compiler's -fsanitize=thread,bounds,alignment calls from kernels; libtsan and libubsan are not linked.
#include <stdexcept>

#include "emu/machine.h"

namespace emu {
namespace {

inline void on_access(const void* p, size_t bytes, Kind kind, const void* return_address, bool aligned) {
  const Fiber* fiber = checked;
  if (!fiber) return;
  const auto a = reinterpret_cast<uintptr_t>(p);
  if (a - reinterpret_cast<uintptr_t>(fiber->stack) < kStackBytes) return;
  const Unchecked unchecked;
  const Site site = site_of(return_address);
  if (aligned && a % bytes) {
    fail_at("misaligned: " + std::to_string(bytes) + " bytes at an address that is no multiple of it", describe(site));
  }
  check_access(p, bytes, kind, site);
}

// As libubsan's interface lays them out.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor *array, *index;
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment, kind;
};

std::string place_of(const SourceLocation& location) {
  return std::string(location.file) + ":" + std::to_string(location.line);
}

}  // namespace
}  // namespace emu

extern "C" {

#define EMU_ACCESS(name, bytes, kind, aligned)                                               \
  void __tsan_##name(void* p) {                                                              \
    emu::on_access(p, bytes, emu::Kind::kind, __builtin_return_address(0), aligned);         \
  }
EMU_ACCESS(read1, 1, kRead, true)
EMU_ACCESS(read2, 2, kRead, true)
EMU_ACCESS(read4, 4, kRead, true)
EMU_ACCESS(read8, 8, kRead, true)
EMU_ACCESS(read16, 16, kRead, true)
EMU_ACCESS(write1, 1, kWrite, true)
EMU_ACCESS(write2, 2, kWrite, true)
EMU_ACCESS(write4, 4, kWrite, true)
EMU_ACCESS(write8, 8, kWrite, true)
EMU_ACCESS(write16, 16, kWrite, true)
EMU_ACCESS(unaligned_read2, 2, kRead, false)
EMU_ACCESS(unaligned_read4, 4, kRead, false)
EMU_ACCESS(unaligned_read8, 8, kRead, false)
EMU_ACCESS(unaligned_read16, 16, kRead, false)
EMU_ACCESS(unaligned_write2, 2, kWrite, false)
EMU_ACCESS(unaligned_write4, 4, kWrite, false)
EMU_ACCESS(unaligned_write8, 8, kWrite, false)
EMU_ACCESS(unaligned_write16, 16, kWrite, false)
#undef EMU_ACCESS

void __tsan_read_range(void* p, size_t bytes) {
  if (bytes) emu::on_access(p, bytes, emu::Kind::kRead, __builtin_return_address(0), false);
}
void __tsan_write_range(void* p, size_t bytes) {
  if (bytes) emu::on_access(p, bytes, emu::Kind::kWrite, __builtin_return_address(0), false);
}
// The guard of a launcher's static variable.
char __tsan_atomic8_load(const volatile char* p, int order) {
  (void)order;
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

void __ubsan_handle_out_of_bounds(const emu::OutOfBounds* what, uintptr_t index) {
  const emu::Unchecked unchecked;
  emu::fail_at("out of bounds: index " + std::to_string(static_cast<intptr_t>(index)) + " of " + what->array->name,
               emu::place_of(what->location));
}
void __ubsan_handle_type_mismatch_v1(const emu::TypeMismatch* what, uintptr_t p) {
  const emu::Unchecked unchecked;
  const uintptr_t alignment = uintptr_t{1} << what->log_alignment;
  if (p % alignment == 0) return;  // a null pointer, which the hardware's checks report when it is used
  emu::fail_at("misaligned: " + std::string(what->type->name) + " at an address that is no multiple of " +
                   std::to_string(alignment),
               emu::place_of(what->location));
}

}  // extern "C"
