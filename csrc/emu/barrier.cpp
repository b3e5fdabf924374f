// Barriers of a block, and the instructions that the lanes of a warp execute together.
#include <sys/mman.h>

#include <stdexcept>

#include "emu/machine.h"

namespace emu {
namespace {

constexpr int kSlotBytes = 64;
constexpr int kTableBytes = 32 * kSlotBytes;

void release(Barrier& barrier) {
  if (machine.settings.race) {
    // Who only arrived does not learn what the others did; who synchronises learns what they did too.
    for (int t : barrier.members) join(barrier.clock, machine.fibers[static_cast<size_t>(t)].clock);
    for (int t : barrier.members) {
      Fiber& fiber = machine.fibers[static_cast<size_t>(t)];
      fiber.clock = barrier.clock;
      ++fiber.clock[static_cast<size_t>(t)];
    }
    barrier.clock.clear();
  }
  barrier.members.clear();
  barrier.arrived = 0;
  ++barrier.generation;
}

Barrier& named_barrier(int id, int threads, Loc loc) {
  if (id < 0 || id > 15) fail("there are barriers 0 to 15, not " + std::to_string(id), loc);
  if (threads <= 0 || threads % 32 || threads > kMaxThreads) {
    fail("a named barrier is for a multiple of 32 threads, not " + std::to_string(threads), loc);
  }
  Barrier& barrier = machine.barriers[static_cast<size_t>(id)];
  if (barrier.arrived && barrier.expected != threads) {
    fail("named barrier " + std::to_string(id) + ": this thread says " + std::to_string(threads) +
             " threads, earlier ones said " + std::to_string(barrier.expected) + " at " + describe(barrier.loc),
         loc);
  }
  barrier.expected = threads;
  barrier.loc = loc;
  return barrier;
}

// All lanes are there.
void complete(Collective& collective, int warp) {
  if (collective.memory && machine.settings.race) {
    Clock all;
    const auto first = static_cast<size_t>(warp) * 32;
    for (size_t lane = 0; lane < 32; ++lane) {
      if (collective.arrived >> lane & 1) join(all, machine.fibers[first + lane].clock);
    }
    for (size_t lane = 0; lane < 32; ++lane) {
      if (!(collective.arrived >> lane & 1)) continue;
      machine.fibers[first + lane].clock = all;
      ++machine.fibers[first + lane].clock[first + lane];
    }
  }
  collective.arrived = 0;
  ++collective.generation;
}

Collective& find_collective(int warp, unsigned mask) {
  auto& collectives = machine.collectives[static_cast<size_t>(warp)];
  for (Collective& collective : collectives) {
    if (collective.mask == mask) return collective;
  }
  size_t used = 0;
  for (const auto& other : machine.collectives) used += other.size();
  if (used == kMaxCollectives) throw std::runtime_error("emulator: a block uses too many different lane masks");
  collectives.push_back({});
  collectives.back().mask = mask;
  collectives.back().slots = collective_slots() + used * 2 * kTableBytes;
  return collectives.back();
}

}  // namespace

unsigned char* collective_slots() {
  static void* const arena =
      mmap(nullptr, kCollectiveBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) throw std::bad_alloc();
  return static_cast<unsigned char*>(arena);
}

void barrier(Loc loc) {
  const Unchecked unchecked;
  Barrier& barrier = machine.barriers[0];
  if (barrier.arrived && (barrier.loc.line() != loc.line() || strcmp(barrier.loc.file_name(), loc.file_name()))) {
    fail("divergent __syncthreads: other threads of the block wait at " + describe(barrier.loc), loc);
  }
  barrier.expected = 0;
  barrier.loc = loc;
  barrier.members.push_back(machine.running->context.thread);
  if (++barrier.arrived >= machine.live) {
    release(barrier);
  } else {
    wait_while(&barrier.generation, barrier.generation, {"__syncthreads"}, loc);
  }
}

int barrier_reduce(int predicate, Reduce kind, Loc loc) {
  const Unchecked unchecked;
  Barrier& b = machine.barriers[0];
  int& result = b.reduced[b.generation & 1];  // the next barrier uses the other one
  if (!b.arrived) result = kind == Reduce::kAnd;
  switch (kind) {
    case Reduce::kOr: result |= predicate != 0; break;
    case Reduce::kAnd: result &= predicate != 0; break;
    case Reduce::kCount: result += predicate != 0; break;
  }
  barrier(loc);
  return result;
}

void named_barrier_sync(int id, int threads, Loc loc) {
  const Unchecked unchecked;
  Barrier& barrier = named_barrier(id, threads, loc);
  barrier.members.push_back(machine.running->context.thread);
  if (++barrier.arrived == threads) {
    release(barrier);
  } else {
    wait_while(&barrier.generation, barrier.generation,
               {"named barrier %u for %u threads", static_cast<unsigned>(id), static_cast<unsigned>(threads)}, loc);
  }
}

void named_barrier_arrive(int id, int threads, Loc loc) {
  const Unchecked unchecked;
  Barrier& barrier = named_barrier(id, threads, loc);
  Fiber& fiber = *machine.running;
  if (machine.settings.race) {
    join(barrier.clock, fiber.clock);
    ++fiber.clock[static_cast<size_t>(fiber.context.thread)];
  }
  if (++barrier.arrived == threads) release(barrier);
}

const unsigned char* exchange(unsigned mask, const void* v, int bytes, int tag, bool memory, Loc loc) {
  const Unchecked unchecked;
  const int warp = machine.running->context.warp, lane = machine.running->context.lane;
  if (!(mask >> lane & 1)) fail("the thread's lane is not in the mask it gives", loc);
  Collective& collective = find_collective(warp, mask);
  if (collective.arrived && (collective.tag != tag || collective.loc.line() != loc.line())) {
    fail("the warp has diverged: other lanes of the mask are at " + describe(collective.loc), loc);
  }
  collective.tag = tag;
  collective.memory = memory;
  collective.loc = loc;
  unsigned char* table = collective.slots + (collective.generation & 1) * kTableBytes;
  if (bytes > kSlotBytes) fail("an exchange carries at most 64 bytes a lane", loc);
  if (bytes) std::memcpy(table + kSlotBytes * lane, v, static_cast<size_t>(bytes));
  collective.arrived |= 1u << lane;
  if (collective.arrived == (mask & machine.live_lanes[static_cast<size_t>(warp)])) {
    complete(collective, warp);
  } else {
    const Wait wait{"an instruction of the warp with mask 0x%08x", mask};
    wait_while(&collective.generation, collective.generation, wait, loc);
  }
  return table;
}

// A thread that has returned is waited for no longer.
void thread_returned(Fiber& fiber) {
  Barrier& barrier = machine.barriers[0];
  if (barrier.arrived && !barrier.expected && barrier.arrived >= machine.live) release(barrier);
  const auto warp = static_cast<size_t>(fiber.context.warp);
  machine.live_lanes[warp] &= ~(1u << fiber.context.lane);
  for (Collective& collective : machine.collectives[warp]) {
    const bool all = collective.arrived == (collective.mask & machine.live_lanes[warp]);
    if (collective.arrived && all) complete(collective, fiber.context.warp);
  }
}

void reset_barriers() {
  for (Barrier& barrier : machine.barriers) barrier = Barrier{};
}

std::vector<std::string> waiting_barriers() {
  std::vector<std::string> lines;
  for (size_t id = 0; id < machine.barriers.size(); ++id) {
    const Barrier& barrier = machine.barriers[id];
    if (!barrier.arrived) continue;
    const int expected = barrier.expected ? barrier.expected : machine.live;
    lines.push_back("barrier " + std::to_string(id) + ": " + std::to_string(barrier.arrived) + " of " +
                    std::to_string(expected) + " threads have arrived");
  }
  return lines;
}

}  // namespace emu
