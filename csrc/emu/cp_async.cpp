// cp.async: copies of the running thread, done when it waits for them, or at once if eager.
#include "emu/machine.h"

namespace emu {
namespace {

void copy(const Copy& c) {
  std::memcpy(c.dst, c.src, static_cast<size_t>(c.source_bytes));
  std::memset(static_cast<char*>(c.dst) + c.source_bytes, 0, static_cast<size_t>(c.bytes - c.source_bytes));
}

}  // namespace

void cp_async(void* dst, const void* src, int bytes, int source_bytes, Loc loc) {
  const Unchecked unchecked;
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes", loc);
  if (source_bytes < 0 || source_bytes > bytes) fail("cp.async: source size out of range", loc);
  const auto size = static_cast<size_t>(bytes);
  if (reinterpret_cast<uintptr_t>(dst) % size || reinterpret_cast<uintptr_t>(src) % size) {
    fail("misaligned: cp.async of " + std::to_string(bytes) + " bytes", loc);
  }
  Fiber& fiber = *machine.running;
  if (machine.settings.race) {
    if (fiber.copies.component < 0) fiber.copies.component = new_component(fiber.context.thread, true);
    const Actor actor{static_cast<uint32_t>(fiber.copies.component), fiber.copies.open_group(), Proxy::kGeneric};
    if (source_bytes) check_access(src, static_cast<size_t>(source_bytes), Kind::kRead, site_of(loc), actor);
    check_access(dst, size, Kind::kWrite, site_of(loc), actor);
  }
  const Copy c{dst, src, bytes, source_bytes};
  if (machine.settings.eager) copy(c);
  fiber.copies.open.push_back(c);
}

void cp_async_commit(Loc) {
  const Unchecked unchecked;
  machine.running->copies.commit();
}

void cp_async_wait(int keep, Loc) {
  const Unchecked unchecked;
  Fiber& fiber = *machine.running;
  while (static_cast<int>(fiber.copies.committed.size()) > keep) {
    if (!machine.settings.eager) {
      for (const Copy& c : fiber.copies.committed.front()) copy(c);
    }
    fiber.copies.committed.pop_front();
    ++fiber.copies.completed;
  }
  if (machine.settings.race && fiber.copies.component >= 0) {
    advance(fiber.clock, static_cast<uint32_t>(fiber.copies.component), fiber.copies.completed);
  }
}

void check_copies_done(Fiber& fiber) {
  const bool pending = !fiber.copies.open.empty() ||
                       std::any_of(fiber.copies.committed.begin(), fiber.copies.committed.end(),
                                   [](const std::vector<Copy>& group) { return !group.empty(); });
  if (pending) fail_at("the thread returns with cp.async under way", "the end of the kernel");
}

}  // namespace emu
