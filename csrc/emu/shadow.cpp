// The checker: every access is compared with those that the shadow memory remembers.
//
// An access conflicts with an earlier one of the same bytes if one of them writes and the vector clocks do not say
// that the earlier one happened before (clock.h). Per cell of memory the last write is kept, and of the reads since
// then two of each warp that nothing orders: a later write that is ordered after those but not after a third one
// of the same warp goes unseen. Blocks of a launch are never ordered.
#include "emu/shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "emu/control.h"
#include "emu/machine.h"
#include "emu/symbols.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, __bss_start, _end;

namespace emu {
namespace {

constexpr unsigned kCountBits = 20;
constexpr uint32_t kMaxCount = (1u << kCountBits) - 1;
constexpr uint32_t kMaxComponents = 1u << (32 - kCountBits);

// One remembered access: component << 20 | count, 0 if there is none.
struct Mark {
  uint32_t tag;
  Site site;
};

// What is known about a few bytes. Blocks are numbered from 1 in the order they run; zeroed memory is a valid cell.
struct Cell {
  uint32_t write_block, read_block;
  uint32_t other_block;  // one more block that read global memory, before read_block did
  Site other_site;
  Mark write;
  bool atomic;
  // followed by two marks of readers for each group of warps
  Mark* readers() { return reinterpret_cast<Mark*>(this + 1); }
};

struct Region {
  uintptr_t begin, end;
  std::string name;
  enum { kIgnored, kShared, kGlobal } space;
  unsigned groups;     // of warps whose readers are remembered apart
  unsigned shift = 2;  // a cell is for 1 << shift bytes: as few as an access has needed
  char* cells = nullptr;
  size_t mapped = 0;

  size_t stride() const { return sizeof(Cell) + sizeof(Mark) * 2 * groups; }
  size_t count() const { return ((end - 1) >> shift) - (begin >> shift) + 1; }
  Cell* cell(uintptr_t a) const {
    return reinterpret_cast<Cell*>(cells + ((a >> shift) - (begin >> shift)) * stride());
  }
};

struct Component {
  int owner;    // the thread whose fence.proxy.async covers it; -1: accesses of the async proxy itself
  bool copies;  // counts that thread's cp.async groups
};

std::vector<Buffer> buffers;
std::vector<Region> regions;  // by address; they do not overlap
Region* last_region;
std::vector<Component> components;
uint32_t block_number;

void map_cells(Region& region) {
  region.mapped = region.count() * region.stride();
  void* p = mmap(nullptr, region.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  region.cells = static_cast<char*>(p);
}

// Smaller cells for the whole region: what was known about a cell holds for each of its parts.
void refine(Region& region, unsigned shift) {
  const Region coarse = region;
  region.shift = shift;
  map_cells(region);
  const uintptr_t step = uintptr_t{1} << shift;
  for (uintptr_t a = region.begin >> shift << shift; a < region.end; a += step) {
    std::memcpy(region.cell(a), coarse.cell(std::max(a, region.begin)), region.stride());
  }
  munmap(coarse.cells, coarse.mapped);
}

Region* find_region(uintptr_t a) {
  if (last_region && a >= last_region->begin && a < last_region->end) return last_region;
  auto next = std::upper_bound(regions.begin(), regions.end(), a,
                               [](uintptr_t address, const Region& r) { return address < r.begin; });
  if (next == regions.begin()) return nullptr;
  --next;
  if (a >= next->end) return nullptr;
  return last_region = &*next;
}

std::string verb(Kind kind, Proxy proxy) {
  const char* how = proxy == Proxy::kAsync ? "asynchronous " : "";
  return std::string(how) + (kind == Kind::kRead ? "read" : kind == Kind::kWrite ? "write" : "atomic access");
}

std::string place(const Region& region, uintptr_t a, size_t bytes) {
  const size_t offset = a - region.begin;
  char text[128];
  snprintf(text, sizeof text, " + 0x%zx (element %zu of %zu bytes)", offset, offset / bytes, bytes);
  return region.name + text;
}

[[noreturn]] void fail_bounds(uintptr_t a, size_t bytes, Kind kind, Proxy proxy, Site site) {
  const Region* nearest = nullptr;
  size_t nearest_distance = SIZE_MAX;
  for (const Region& region : regions) {
    if (region.space == Region::kIgnored) continue;
    const size_t distance = a < region.begin ? region.begin - a : a + bytes - region.end;
    if (distance < nearest_distance) nearest = &region, nearest_distance = distance;
  }
  std::string text = "out of bounds: " + verb(kind, proxy) + " of " + std::to_string(bytes) + " bytes";
  if (nearest && nearest_distance < (64u << 20)) {
    const auto offset = static_cast<std::ptrdiff_t>(a - nearest->begin);
    text += " at " + nearest->name + (offset < 0 ? " - " : " + ") + std::to_string(std::abs(offset)) + " (element " +
            std::to_string(offset / static_cast<std::ptrdiff_t>(bytes)) + "), which has " +
            std::to_string(nearest->end - nearest->begin) + " bytes";
  } else {
    text += " far from all memory that the kernel was given";
  }
  fail_at(text, describe(site));
}

std::string who(uint32_t tag) {
  const Component& component = components[tag >> kCountBits];
  if (component.owner < 0) return "an asynchronous operation";
  return (component.copies ? "a cp.async of thread " : "thread ") + std::to_string(component.owner);
}

// What one call of check_access needs for each of its cells.
struct Check {
  const Region& region;
  const Clock& clock;
  Actor actor;
  uint32_t tag;
  Kind kind;
  Site site;
  uintptr_t address;
  size_t bytes;
  unsigned group;

  [[noreturn]] void fail_race(const char* earlier, const std::string& by, Site earlier_site) const {
    fail_at("race: " + verb(kind, actor.proxy) + " after " + earlier + " by " + by + " of " +
                place(region, address, bytes) + ", with nothing that orders them",
            describe(site) + "\n  earlier " + earlier + " at " + describe(earlier_site));
  }

  bool ordered(uint32_t earlier) const { return (earlier & kMaxCount) <= known(clock, earlier >> kCountBits); }

  // Between ordinary accesses and those of the async proxy, order is not enough: the thread that made the ordinary
  // one must have executed fence.proxy.async after it, and this must be ordered before the present too.
  bool fenced(uint32_t earlier) const {
    const Component& component = components[earlier >> kCountBits];
    if (component.owner < 0) return true;
    const auto& fences = machine.fibers[static_cast<size_t>(component.owner)].fences;
    const auto fence = std::partition_point(fences.begin(), fences.end(), [&](const Fence& f) {
      return (component.copies ? f.copies : f.own) < (earlier & kMaxCount);
    });
    return fence != fences.end() && fence->own < known(clock, static_cast<uint32_t>(component.owner));
  }

  void against(const Mark& mark, const char* earlier) const {
    if (!ordered(mark.tag)) fail_race(earlier, who(mark.tag), mark.site);
    if (actor.proxy == Proxy::kAsync && !fenced(mark.tag)) {
      fail_at("missing fence.proxy.async: " + verb(kind, actor.proxy) + " of " + place(region, address, bytes) +
                  " after an ordinary " + earlier + " by " + who(mark.tag),
              describe(site) + "\n  earlier " + earlier + " at " + describe(mark.site));
    }
  }

  void against_write(const Cell& cell) const {
    if (cell.write_block == block_number) {
      if (!(kind == Kind::kAtomic && cell.atomic)) against(cell.write, cell.atomic ? "atomic access" : "write");
    } else if (region.space == Region::kShared) {
      if (kind != Kind::kWrite) {
        fail_at("uninitialised: " + verb(kind, actor.proxy) + " of " + place(region, address, bytes) +
                    ", which the block has not written so far",
                describe(site));
      }
    } else if (cell.write_block && !(kind == Kind::kAtomic && cell.atomic)) {
      fail_race(cell.atomic ? "atomic access" : "write", "another block", cell.write.site);
    }
  }

  void against_readers(Cell& cell) const {
    if (cell.read_block == block_number) {
      for (unsigned i = 0; i < 2 * region.groups; ++i) {
        if (cell.readers()[i].tag) against(cell.readers()[i], "read");
      }
      if (cell.other_block) fail_race("read", "another block", cell.other_site);
    } else if (cell.read_block && region.space == Region::kGlobal) {
      fail_race("read", "another block", cell.readers()[0].site);
    }
  }

  void read(Cell& cell) const {
    Mark* mine = cell.readers() + 2 * group;
    const bool current = cell.read_block == block_number;
    if (current && (mine[0].tag == tag || mine[1].tag == tag)) return;
    against_write(cell);
    if (!current) {
      if (cell.read_block && region.space == Region::kGlobal) {
        cell.other_block = cell.read_block;
        cell.other_site = cell.readers()[0].site;
      }
      std::memset(cell.readers(), 0, sizeof(Mark) * 2 * region.groups);
      cell.read_block = block_number;
    }
    for (int i = 0; i < 2; ++i) {
      // A reader that happened before this one adds nothing: what is ordered after this one is ordered after it too.
      if (mine[i].tag && !ordered(mine[i].tag)) continue;
      mine[i] = {tag, site};
      return;
    }
  }

  void write(Cell& cell) const {
    const bool atomic = kind == Kind::kAtomic;
    if (cell.write_block == block_number && cell.write.tag == tag && cell.read_block == 0 && cell.atomic == atomic &&
        actor.proxy == Proxy::kGeneric && ordered(tag)) {
      return;
    }
    against_write(cell);
    against_readers(cell);
    cell.write_block = block_number;
    cell.write = {tag, site};
    cell.atomic = atomic;
    cell.read_block = cell.other_block = 0;
  }
};

void add_region(const void* p, size_t bytes, std::string name, decltype(Region::space) space, unsigned groups) {
  if (!bytes) return;
  const auto begin = reinterpret_cast<uintptr_t>(p);
  Region region;
  region.begin = begin;
  region.end = begin + bytes;
  region.name = std::move(name);
  region.space = space;
  region.groups = groups;
  regions.push_back(std::move(region));
}

// Buffers that overlap (views of one tensor) become one region.
void sort_regions() {
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
  std::vector<Region> merged;
  for (Region& region : regions) {
    if (merged.empty() || region.begin >= merged.back().end) {
      merged.push_back(std::move(region));
    } else {
      merged.back().end = std::max(merged.back().end, region.end);
      merged.back().name += "/" + region.name;
    }
  }
  regions = std::move(merged);
}

}  // namespace

Actor running_thread() {
  const auto thread = static_cast<uint32_t>(machine.running->context.thread);
  return {thread, machine.running->clock[thread], Proxy::kGeneric};
}

int new_component(int owner, bool copies) {
  components.push_back({owner, copies});
  if (components.size() > kMaxComponents) throw std::runtime_error("emulator: too many asynchronous agents in a block");
  return static_cast<int>(components.size()) - 1;
}

void check_access(const void* p, size_t bytes, Kind kind, Site site, Actor actor) {
  Fiber& fiber = *machine.running;
  const auto a = reinterpret_cast<uintptr_t>(p);
  Region* region = find_region(a);
  if (!region || a + bytes > region->end) fail_bounds(a, bytes, kind, actor.proxy, site);
  if (region->space == Region::kIgnored) return;
  if (actor.count > kMaxCount) fail_at("the kernel synchronises too often for the checker", describe(site));
  if (!region->cells) map_cells(*region);
  const uintptr_t unit = a | bytes;
  const unsigned shift = unit & 1 ? 0 : unit & 2 ? 1 : 2;
  if (shift < region->shift) refine(*region, shift);

  const unsigned group = region->groups == 1 ? 0 : static_cast<unsigned>(fiber.context.warp);
  const Check check{*region, fiber.clock, actor, actor.component << kCountBits | actor.count, kind, site, a, bytes,
                    group};
  const size_t stride = region->stride();
  char* cell = reinterpret_cast<char*>(region->cell(a));
  char* const end = cell + (bytes >> region->shift) * stride;
  for (; cell < end; cell += stride) {
    if (kind == Kind::kRead) {
      check.read(*reinterpret_cast<Cell*>(cell));
    } else {
      check.write(*reinterpret_cast<Cell*>(cell));
    }
  }
}

void check_access(const void* p, size_t bytes, Kind kind, Site site) {
  check_access(p, bytes, kind, site, running_thread());
}

void atomic_access(void* p, int bytes, Loc loc) {
  const Unchecked unchecked;
  if (!machine.running || !machine.settings.race) return;
  const auto a = reinterpret_cast<uintptr_t>(p), stack = reinterpret_cast<uintptr_t>(machine.running->stack);
  if (a % static_cast<size_t>(bytes)) fail("misaligned atomic", loc);
  if (a - stack < kStackBytes) fail("atomic on a thread's own stack", loc);
  check_access(p, static_cast<size_t>(bytes), Kind::kAtomic, site_of(loc));
}

void thread_fence(Loc) {}

void set_buffers(std::vector<Buffer> all) {
  buffers = std::move(all);
  machine.launched.clear();
}

bool in_dynamic_shared(const void* p, size_t bytes) {
  const auto* c = static_cast<const char*>(p);
  return c >= machine.shared && c + bytes <= machine.shared + machine.shared_bytes;
}

void begin_launch_shadow(const void* closure, size_t closure_bytes) {
  end_launch_shadow();
  if (!machine.settings.race) return;
  const auto groups = static_cast<unsigned>(machine.warps);
  add_region(&__ehdr_start, static_cast<size_t>(&__bss_start - &__ehdr_start), "constants", Region::kIgnored, 1);
  add_region(closure, closure_bytes, "kernel arguments", Region::kIgnored, 1);
  add_region(machine.fibers.data(), machine.fibers.size() * sizeof(Fiber), "emulator", Region::kIgnored, 1);
  add_region(collective_slots(), kCollectiveBytes, "emulator", Region::kIgnored, 1);
  add_region(machine.shared, machine.shared_bytes, "dynamic shared memory", Region::kShared, groups);
  if (static_shared().empty()) {
    const auto bytes = static_cast<size_t>(&_end - &__bss_start);
    add_region(&__bss_start, bytes, "static shared memory", Region::kShared, groups);
  }
  for (const Symbol& s : static_shared()) {
    add_region(reinterpret_cast<void*>(s.begin), s.end - s.begin, "shared " + s.name, Region::kShared, groups);
  }
  for (const Buffer& b : buffers) add_region(b.p, b.bytes, std::string("buffer ") + b.name, Region::kGlobal, 1);
  sort_regions();
  block_number = 0;
}

void begin_block_shadow() {
  ++block_number;
  components.clear();
  for (int thread = 0; thread < machine.threads; ++thread) components.push_back({thread, false});
}

void end_launch_shadow() {
  for (Region& region : regions) {
    if (region.cells) munmap(region.cells, region.mapped);
  }
  regions.clear();
  last_region = nullptr;
}

}  // namespace emu
