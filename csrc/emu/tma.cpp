// mbarriers, and the TMA copies that complete on them.
#include "emu/machine.h"

namespace emu {
namespace {

constexpr uint32_t kTensorMapMagic = 0x1c1fa57;

MBarrier& find(uint64_t* bar, Loc loc) {
  // An arrival or wait conflicts with nothing but the initialisation (or other use) of the same memory.
  if (machine.settings.race) check_access(bar, sizeof *bar, Kind::kRead, site_of(loc));
  auto found = machine.mbarriers.find(bar);
  if (found == machine.mbarriers.end()) fail("mbarrier used before its initialisation", loc);
  return found->second;
}

void complete_if_done(MBarrier& m) {
  if (m.pending || m.bytes) return;
  if (m.component >= 0) advance(m.arrived, static_cast<uint32_t>(m.component), static_cast<uint32_t>(m.generation) + 1);
  m.completed[m.generation & 1] = std::move(m.arrived);
  m.arrived.clear();
  m.pending = m.count;
  ++m.generation;
}

void arrive(MBarrier& m, Loc loc) {
  if (m.pending == 0) fail("mbarrier: more arrivals in a phase than its count of " + std::to_string(m.count), loc);
  Fiber& fiber = *machine.running;
  if (machine.settings.race) {
    join(m.arrived, fiber.clock);
    ++fiber.clock[static_cast<size_t>(fiber.context.thread)];
  }
  --m.pending;
}

// 16-byte chunks of a row are permuted by address bits 7 and up: xor into bits 4 and up.
char* swizzled(char* p, uint32_t swizzle_bytes) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  return p + static_cast<std::ptrdiff_t>((a ^ (a >> 3 & (swizzle_bytes - 1) & ~uintptr_t{15})) - a);
}

size_t box_bytes(const TensorMap& map) {
  size_t bytes = map.element_bytes;
  for (uint32_t i = 0; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}

// Calls f(row, source, skip, bytes) for each innermost row of the box: `bytes` of it lie in the tensor at `source`,
// `skip` bytes into the row.
template <class F>
void for_each_row(const TensorMap& map, const std::array<int, 5>& coords, F f) {
  size_t rows = 1;
  for (uint32_t i = 1; i < map.rank; ++i) rows *= map.box[i];
  for (size_t row = 0; row < rows; ++row) {
    const char* source = map.base;
    bool inside = true;
    size_t rest = row;
    for (uint32_t i = 1; i < map.rank; ++i) {
      const int64_t at = coords[i] + static_cast<int64_t>(rest % map.box[i]);
      rest /= map.box[i];
      inside = inside && at >= 0 && at < static_cast<int64_t>(map.dims[i]);
      source += at * static_cast<int64_t>(map.strides[i]);
    }
    const int64_t first = std::max<int64_t>(coords[0], 0);
    const int64_t end = std::min<int64_t>(int64_t{coords[0]} + map.box[0], static_cast<int64_t>(map.dims[0]));
    const int64_t count = inside ? std::max<int64_t>(end - first, 0) : 0;
    f(row, source + first * map.element_bytes, static_cast<size_t>(first - coords[0]) * map.element_bytes,
      static_cast<size_t>(count) * map.element_bytes);
  }
}

void run_copy(const TensorCopy& c) {
  const size_t row_bytes = size_t{c.map.box[0]} * c.map.element_bytes;
  std::vector<char> buffer(row_bytes);
  for_each_row(c.map, c.coords, [&](size_t row, const char* source, size_t skip, size_t bytes) {
    std::fill(buffer.begin(), buffer.end(), 0);
    if (bytes) std::memcpy(buffer.data() + skip, source, bytes);
    for (size_t chunk = 0; chunk < row_bytes; chunk += 16) {
      char* dst = c.dst + row * row_bytes + chunk;
      std::memcpy(c.map.swizzle_bytes ? swizzled(dst, c.map.swizzle_bytes) : dst, buffer.data() + chunk, 16);
    }
  });
  MBarrier& m = machine.mbarriers[c.bar];
  m.bytes -= static_cast<int64_t>(box_bytes(c.map));
  complete_if_done(m);
}

}  // namespace

void mbarrier_init(uint64_t* bar, int count, Loc loc) {
  const Unchecked unchecked;
  if (reinterpret_cast<uintptr_t>(bar) % 8) fail("misaligned: an mbarrier takes 8 bytes", loc);
  if (count <= 0 || count >= 1 << 20) fail("mbarrier: its count is 1 to 2^20 - 1", loc);
  if (machine.settings.race) check_access(bar, sizeof *bar, Kind::kWrite, site_of(loc));
  MBarrier m;
  m.count = m.pending = count;
  m.initialiser = machine.running->context.thread;
  m.loc = loc;
  machine.mbarriers[bar] = m;
}

void mbarrier_arrive(uint64_t* bar, Loc loc) {
  const Unchecked unchecked;
  MBarrier& m = find(bar, loc);
  arrive(m, loc);
  complete_if_done(m);
}

void mbarrier_arrive_expect_tx(uint64_t* bar, int bytes, Loc loc) {
  const Unchecked unchecked;
  MBarrier& m = find(bar, loc);
  if (bytes < 0 || bytes >= 1 << 20) fail("mbarrier: transaction bytes are 0 to 2^20 - 1", loc);
  m.bytes += bytes;
  arrive(m, loc);
  complete_if_done(m);
}

void mbarrier_wait(uint64_t* bar, int parity, Loc loc) {
  const Unchecked unchecked;
  if (parity != 0 && parity != 1) fail("mbarrier: parity is 0 or 1, not " + std::to_string(parity), loc);
  const MBarrier& m = find(bar, loc);
  while (static_cast<int>(m.generation & 1) == parity) {
    wait_while(&m.generation, m.generation, {"mbarrier_wait, parity %u", static_cast<unsigned>(parity)}, loc);
  }
  Fiber& fiber = *machine.running;
  if (machine.settings.race) join(fiber.clock, m.completed[static_cast<size_t>(parity)]);
}

void fence_mbarrier_init(Loc) {
  const Unchecked unchecked;
  for (auto& [bar, m] : machine.mbarriers) {
    if (m.initialiser == machine.running->context.thread) m.fenced = true;
  }
}

void fence_proxy_async(Loc loc) {
  const Unchecked unchecked;
  fence_mbarrier_init(loc);
  if (!machine.settings.race) return;
  Fiber& fiber = *machine.running;
  uint32_t& own = fiber.clock[static_cast<size_t>(fiber.context.thread)];
  const int copies = fiber.copies.component;
  fiber.fences.push_back({own, copies < 0 ? 0 : known(fiber.clock, static_cast<uint32_t>(copies))});
  ++own;
}

int tensor_map(void* map128, const void* base, int element_bytes, int rank, const uint64_t* dims,
               const uint64_t* strides_bytes, const uint32_t* box, int swizzle_bytes) {
  if (!base || reinterpret_cast<uintptr_t>(base) % 16) return 2;
  if (element_bytes != 1 && element_bytes != 2 && element_bytes != 4 && element_bytes != 8) return 3;
  if (rank < 1 || rank > 5) return 4;
  TensorMap map{};
  map.base = static_cast<const char*>(base);
  map.rank = static_cast<uint32_t>(rank);
  map.element_bytes = static_cast<uint32_t>(element_bytes);
  for (uint32_t i = 0; i < map.rank; ++i) {
    if (dims[i] == 0 || dims[i] > uint64_t{1} << 32) return 5;
    if (i && (strides_bytes[i - 1] % 16 || strides_bytes[i - 1] >= uint64_t{1} << 40)) return 6;
    if (box[i] == 0 || box[i] > 256) return 7;
    map.dims[i] = dims[i];
    map.strides[i] = i ? strides_bytes[i - 1] : map.element_bytes;
    map.box[i] = box[i];
  }
  const uint32_t inner = map.box[0] * map.element_bytes;
  if (inner % 16) return 7;
  if (swizzle_bytes != 0 && swizzle_bytes != 32 && swizzle_bytes != 64 && swizzle_bytes != 128) return 8;
  // The driver takes a narrower box too, but how its rows lie is not something to rely on.
  if (swizzle_bytes && inner != static_cast<uint32_t>(swizzle_bytes)) return 8;
  map.swizzle_bytes = static_cast<uint32_t>(swizzle_bytes);
  map.magic = kTensorMapMagic;
  std::memset(map128, 0, 128);
  std::memcpy(map128, &map, sizeof map);
  return 0;
}

void tma_load(void* dst, const void* map, uint64_t* bar, int rank, const int* coords, Loc loc) {
  const Unchecked unchecked;
  TensorCopy c{};
  std::memcpy(&c.map, map, sizeof c.map);
  if (c.map.magic != kTensorMapMagic) fail("TMA: this is no tensor map", loc);
  if (rank != static_cast<int>(c.map.rank)) {
    fail("TMA: " + std::to_string(rank) + " coordinates for a map of rank " + std::to_string(c.map.rank), loc);
  }
  c.dst = static_cast<char*>(dst);
  c.bar = bar;
  c.loc = loc;
  std::copy(coords, coords + rank, c.coords.begin());
  const uintptr_t alignment = c.map.swizzle_bytes ? 8 * c.map.swizzle_bytes : 128;
  if (reinterpret_cast<uintptr_t>(dst) % alignment) {
    fail("misaligned: this TMA copy's destination must be a multiple of " + std::to_string(alignment), loc);
  }
  MBarrier& m = find(bar, loc);
  if (!m.fenced) {
    fail("missing fence: TMA completes on an mbarrier whose initialisation (" + describe(m.loc) +
             ") was followed by no fence_mbarrier_init or fence_proxy_async of the same thread",
         loc);
  }
  if (machine.settings.race) {
    if (m.component < 0) m.component = new_component(-1, false);
    const Actor actor{static_cast<uint32_t>(m.component), static_cast<uint32_t>(m.generation) + 1, Proxy::kAsync};
    check_access(dst, box_bytes(c.map), Kind::kWrite, site_of(loc), actor);
    for_each_row(c.map, c.coords, [&](size_t, const char* source, size_t, size_t bytes) {
      if (bytes) check_access(source, bytes, Kind::kRead, site_of(loc), actor);
    });
  }
  if (machine.settings.eager) {
    run_copy(c);
  } else {
    machine.tensor_copies.push_back(c);
  }
}

bool run_tensor_copy() {
  auto& copies = machine.tensor_copies;
  if (copies.empty()) return false;
  const size_t index = machine.random() % copies.size();
  const TensorCopy c = copies[index];
  copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(index));
  run_copy(c);
  return true;
}

std::vector<std::string> describe_mbarriers() {
  std::vector<std::string> lines;
  for (const auto& [bar, m] : machine.mbarriers) {
    const std::string offset = in_dynamic_shared(bar, sizeof *bar) ? " at +" + std::to_string(shared_offset(bar)) : "";
    lines.push_back("mbarrier" + offset + " (" + describe(m.loc) + "): phase " + std::to_string(m.generation) + ", " +
                    std::to_string(m.pending) + " of " + std::to_string(m.count) + " arrivals and " +
                    std::to_string(m.bytes) + " bytes to come");
  }
  return lines;
}

}  // namespace emu
