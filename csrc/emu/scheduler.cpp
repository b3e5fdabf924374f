// Fibers, and the loop that runs blocks one after the other and the threads of a block in turn.
#include <sys/mman.h>

#include <cstdlib>
#include <numeric>
#include <stdexcept>

#include "emu/control.h"
#include "emu/machine.h"

#ifndef __x86_64__
#error "the emulator's switch of fibers is written for x86-64"
#endif

// Saves the registers that a call preserves and the stack pointer in *save, and continues what `load` saved.
extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** save, void* load);
asm(R"(
.text
.type emu_switch,@function
.globl emu_switch
.hidden emu_switch
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emu {

Machine machine;
Fiber* checked;

// Not zero, so that it lies outside .bss, which the checker takes for shared memory.
static Context host_context;
Context* current = &host_context;

namespace {

constexpr size_t kStackGuard = 4096;
// Before and behind dynamic shared memory: shows writes of code that is not instrumented, or with the checker off.
constexpr size_t kRedZone = 1024;
constexpr unsigned char kRedZoneByte = 0xa5;
void* main_stack_pointer;

char* fiber_stack(int thread) {
  static std::vector<char*> stacks;
  while (static_cast<int>(stacks.size()) <= thread) {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stacks of the threads");
    mprotect(p, kStackGuard, PROT_NONE);
    stacks.push_back(static_cast<char*>(p));
  }
  return stacks[static_cast<size_t>(thread)];
}

void switch_to_main() {
  Fiber* fiber = machine.running;
  emu_switch(&fiber->stack_pointer, main_stack_pointer);
}

void fiber_main() {
  machine.body(machine.closure);
  checked = nullptr;
  Fiber& fiber = *machine.running;
  check_copies_done(fiber);
  check_products_done(fiber);
  fiber.done = true;
  --machine.live;
  thread_returned(fiber);
  switch_to_main();
  std::abort();  // a thread that has returned is never continued
}

void reset_fiber(int thread, uint64_t block) {
  const dim3 b = machine.block, g = machine.grid;
  const auto t = static_cast<unsigned>(thread);
  Fiber& fiber = machine.fibers[t];
  fiber = Fiber{};
  fiber.context.thread_index = {t % b.x, t / b.x % b.y, t / b.x / b.y};
  fiber.context.block_index = {static_cast<unsigned>(block % g.x), static_cast<unsigned>(block / g.x % g.y),
                               static_cast<unsigned>(block / g.x / g.y)};
  fiber.context.block_dim = b;
  fiber.context.grid_dim = g;
  fiber.context.thread = thread;
  fiber.context.warp = thread / 32;
  fiber.context.lane = thread % 32;
  fiber.clock.assign(static_cast<size_t>(machine.threads), 0);
  fiber.clock[t] = 1;
  machine.live_lanes[t / 32] |= 1u << t % 32;
  fiber.stack = fiber_stack(thread);
  // What emu_switch pops: six registers, then the address to return to. The null below it ends backtraces and leaves
  // the stack as the ABI wants it at a function's entry.
  void** sp = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  fiber.stack_pointer = sp;
}

bool runnable(const Fiber& fiber) { return !fiber.done && !(fiber.generation && *fiber.generation == fiber.seen); }

void reorder(std::vector<int>& order) {
  if (machine.settings.order == "desc") std::sort(order.rbegin(), order.rend());
  if (machine.settings.order == "random") std::shuffle(order.begin(), order.end(), machine.random);
}

std::string deadlock_report() {
  // Threads that wait at the same place are one line.
  std::map<std::string, std::vector<int>> groups;
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.done) continue;
    char wait[128];
    snprintf(wait, sizeof wait, fiber.waits_in.format, fiber.waits_in.a, fiber.waits_in.b);
    groups[std::string(wait) + " at " + describe(fiber.waits_at)].push_back(fiber.context.thread);
  }
  const uint3 b = machine.fibers[0].context.block_index;
  std::string text = "deadlock: no thread can continue\n  kernel " + std::string(machine.kernel) + ", block (" +
                     std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
  for (const auto& [place, threads] : groups) {
    text += "\n  " + std::to_string(threads.size()) + (threads.size() == 1 ? " thread" : " threads") + " (";
    for (size_t i = 0; i < threads.size();) {  // as ranges
      size_t end = i + 1;
      while (end < threads.size() && threads[end] == threads[end - 1] + 1) ++end;
      text += (i ? ", " : "") + std::to_string(threads[i]);
      if (end > i + 1) text += "-" + std::to_string(threads[end - 1]);
      i = end;
    }
    text += (threads.size() == 1 ? ") waits in " : ") wait in ") + place;
  }
  const auto returned = machine.fibers.size() - static_cast<size_t>(machine.live);
  if (returned) text += "\n  " + std::to_string(returned) + " threads have returned";
  for (const std::string& line : waiting_barriers()) text += "\n  " + line;
  for (const std::string& line : describe_mbarriers()) text += "\n  " + line;
  return text;
}

void check_red_zones() {
  const auto* shared = reinterpret_cast<const unsigned char*>(machine.shared);
  for (size_t i = 0; i < kRedZone; ++i) {
    const bool before = shared[-1 - static_cast<std::ptrdiff_t>(i)] != kRedZoneByte;
    if (!before && shared[machine.shared_bytes + i] == kRedZoneByte) continue;
    machine.report = "out of bounds: written " + std::to_string(i + 1) + " bytes " +
                     (before ? "before the start" : "past the end") + " of dynamic shared memory (" +
                     std::to_string(machine.shared_bytes) + " bytes), found at the end of the block\n  kernel " +
                     machine.kernel;
    return;
  }
}

void run_block(uint64_t block) {
  reset_barriers();
  for (auto& collectives : machine.collectives) collectives.clear();
  for (auto& instructions : machine.warpgroup_instructions) instructions.clear();
  machine.wgmma_components.fill(-1);
  machine.mbarriers.clear();
  machine.tensor_copies.clear();
  machine.live = machine.threads;
  machine.live_lanes.fill(0);
  std::memset(machine.shared, 0xff, machine.shared_bytes);  // NaN: use of memory never written shows in results
  for (int thread = 0; thread < machine.threads; ++thread) reset_fiber(thread, block);
  begin_block_shadow();

  std::vector<int> order(static_cast<size_t>(machine.threads));
  std::iota(order.begin(), order.end(), 0);
  while (machine.live) {
    bool progress = false;
    reorder(order);
    for (int thread : order) {
      Fiber& fiber = machine.fibers[static_cast<size_t>(thread)];
      if (!runnable(fiber)) continue;
      progress = true;
      machine.running = &fiber;
      current = &fiber.context;
      checked = fiber.generation || !machine.settings.race ? nullptr : &fiber;  // waits only inside the emulator
      emu_switch(&main_stack_pointer, fiber.stack_pointer);
      machine.running = nullptr;
      checked = nullptr;
      current = &host_context;
      if (!machine.report.empty()) return;
    }
    // Copies end as late as possible: when nothing else can run, in any order.
    if (!progress && !run_tensor_copy()) machine.report = deadlock_report();
    if (!machine.report.empty()) return;
  }
  if (!machine.tensor_copies.empty()) {
    machine.report = "the block ends with a TMA copy under way that no thread has waited for\n  kernel " +
                     std::string(machine.kernel) + "\n  at " + describe(machine.tensor_copies.front().loc);
  }
  if (machine.report.empty()) machine.report = warpgroup_disagreement();
  if (machine.report.empty()) check_red_zones();
}

struct EndOfLaunch {
  ~EndOfLaunch() {
    end_launch_shadow();
    std::free(machine.shared - kRedZone);
    machine.shared = nullptr;
    machine.shared_bytes = 0;
  }
};

}  // namespace

void* dynamic_shared() { return machine.shared; }
size_t dynamic_shared_size() { return machine.shared_bytes; }
unsigned shared_offset(const void* p) {
  const Unchecked unchecked;
  const auto offset = static_cast<size_t>(static_cast<const char*>(p) - machine.shared);
  if (offset > machine.shared_bytes) fail("not an address in dynamic shared memory", Loc::current());
  return static_cast<unsigned>(offset);
}

void wait_while(const uint64_t* generation, uint64_t seen, Wait waits_in, Loc loc) {
  Fiber& fiber = *machine.running;
  fiber.generation = generation;
  fiber.seen = seen;
  fiber.waits_in = waits_in;
  fiber.waits_at = loc;
  switch_to_main();  // continued when the generation has changed
  fiber.generation = nullptr;
}

void abandon_launch() {
  switch_to_main();
  std::abort();  // the loop stops at the first report
}

void run(dim3 grid, dim3 block, size_t smem, const char* name, Body body, void* closure, size_t closure_bytes) {
  const std::string prefix = "emulator: launch of " + std::string(name) + ": ";
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads) throw std::runtime_error(prefix + "a block has 1 to 1024 threads");
  if (blocks == 0) throw std::runtime_error(prefix + "the grid is empty");
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu) {
    throw std::runtime_error(prefix + "the grid is larger than 2147483647 x 65535 x 65535");
  }
  if (smem > kMaxShared) throw std::runtime_error(prefix + "a block has at most 232448 bytes of shared memory");
  if (smem > kDefaultShared && smem > static_cast<size_t>(machine.settings.dynamic_shared_allowed)) {
    throw std::runtime_error(prefix + "more than 48 KiB of dynamic shared memory need cudaFuncSetAttribute");
  }
  machine.kernel = name;
  machine.launched.push_back(name);
  machine.grid = grid;
  machine.block = block;
  machine.threads = static_cast<int>(threads);
  machine.warps = (machine.threads + 31) / 32;
  machine.body = body;
  machine.closure = closure;
  machine.random.seed(machine.settings.seed);
  machine.report.clear();
  machine.fibers.resize(threads);
  machine.shared_bytes = smem;
  const size_t allocated = (smem + 2 * kRedZone + 1023) / 1024 * 1024;
  auto* memory = static_cast<char*>(std::aligned_alloc(1024, allocated));
  if (!memory) throw std::bad_alloc();
  std::memset(memory, kRedZoneByte, allocated);
  machine.shared = memory + kRedZone;
  EndOfLaunch end;
  begin_launch_shadow(closure, closure_bytes);

  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (machine.settings.order == "desc") std::reverse(order.begin(), order.end());
  if (machine.settings.order == "random") std::shuffle(order.begin(), order.end(), machine.random);
  for (uint64_t index : order) {
    run_block(index);
    if (!machine.report.empty()) throw std::runtime_error(machine.report);
  }
}

// --- settings and the host API --------------------------------------------------------------------------------------

void set_race(bool on) { machine.settings.race = on; }
std::vector<const char*> launched() { return machine.launched; }
void set_async(bool eager) { machine.settings.eager = eager; }
void set_multiprocessors(int count) { machine.settings.multiprocessors = count; }
void set_order(const char* order, unsigned seed) {
  const std::string name = order;
  if (name != "asc" && name != "desc" && name != "random") throw std::runtime_error("order: asc, desc or random");
  machine.settings.order = name;
  machine.settings.seed = seed;
}
void set_arithmetic(const char* name) {
  const std::string wanted = name;
  if (wanted != "float32" && wanted != "sm_80" && wanted != "sm_90") {
    throw std::runtime_error("arithmetic: float32, sm_80 or sm_90");
  }
  machine.settings.arithmetic = wanted == "float32" ? Arithmetic::kFloat32
                                : wanted == "sm_80" ? Arithmetic::kSm80
                                                    : Arithmetic::kSm90;
}
void set_compute_capability(int major, int minor) {
  machine.settings.major = major;
  machine.settings.minor = minor;
}
void allow_dynamic_shared(int bytes) {
  machine.settings.dynamic_shared_allowed = std::max(machine.settings.dynamic_shared_allowed, bytes);
}

int device_attribute(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: return machine.settings.multiprocessors;
    case cudaDevAttrComputeCapabilityMajor: return machine.settings.major;
    case cudaDevAttrComputeCapabilityMinor: return machine.settings.minor;
    case cudaDevAttrMaxSharedMemoryPerBlock: return static_cast<int>(kDefaultShared);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return static_cast<int>(kMaxShared);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return static_cast<int>(kMaxShared) + 1024;
    case cudaDevAttrMaxThreadsPerBlock: return kMaxThreads;
    case cudaDevAttrWarpSize: return 32;
    default: throw std::runtime_error("emulator: cudaDeviceGetAttribute of an attribute it does not know");
  }
}

}  // namespace emu
