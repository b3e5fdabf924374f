// The emulator's own state: one launch, of which one block runs at a time. Not seen by kernels.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "emu/clock.h"
#include "emu/emu.h"
#include "emu/shadow.h"

namespace emu {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr size_t kMaxShared = 232448;       // of one block on sm_90
constexpr size_t kDefaultShared = 48 << 10;  // more needs cudaFuncSetAttribute

// One cp.async.
struct Copy {
  void* dst;
  const void* src;
  int bytes, source_bytes;
};

// One wgmma of one thread: its own fragment of the product.
struct Product {
  float* d;
  int n;
  bool bf16, accumulate, a_mn_major, b_mn_major, register_a;
  std::array<uint32_t, 4> a;
  size_t instruction;  // in its warpgroup's
  Loc loc;
};

// Operations that complete in groups, first in first out.
template <class T>
struct Groups {
  std::vector<T> open;
  std::deque<std::vector<T>> committed;
  uint32_t completed = 0;
  int component = -1;  // of the vector clocks; counts completed groups

  uint32_t open_group() const { return completed + static_cast<uint32_t>(committed.size()) + 1; }
  bool idle() const { return open.empty() && committed.empty(); }
  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
};

// A thread's accumulators while products write them.
struct Accumulators {
  std::vector<float> values;
  uint32_t last_group;  // that writes them
  int n;
};

// What a thread waits for: text with two printf conversions, put together only for a report.
struct Wait {
  const char* format;
  unsigned a = 0, b = 0;
};

struct Fiber {
  Context context;
  void* stack_pointer;
  char* stack;
  bool done;

  // Waits until *generation is no longer `seen`.
  const uint64_t* generation;
  uint64_t seen;
  Wait waits_in;
  Loc waits_at;

  Clock clock;
  std::vector<Fence> fences;
  Groups<Copy> copies;
  Groups<Product> products;
  std::map<float*, Accumulators> accumulators;
  bool wgmma_fenced;
  size_t executed;  // of its warpgroup's instructions
};

struct Barrier {
  uint64_t generation = 0;
  int arrived = 0, expected = 0;  // expected 0: all live threads
  std::array<int, 2> reduced = {0, 0};
  std::vector<int> members;
  Clock clock;
  Loc loc;
};

struct MBarrier {
  int count = 0, pending = 0, initialiser = 0;
  int64_t bytes = 0;
  uint64_t generation = 0;  // completed phases
  bool fenced = false;
  int component = -1;  // of the vector clocks; counts completed phases
  Clock arrived;
  std::array<Clock, 2> completed;  // by parity
  Loc loc;
};

// Threads of one warp that execute one instruction together.
struct Collective {
  unsigned mask, arrived;
  uint64_t generation;
  int tag;
  bool memory;
  Loc loc;
  unsigned char* slots;  // two tables of 32 slots of 64 bytes, used in turn
};

// What all threads of a warpgroup execute in the same order: wgmma and what goes with it.
struct WarpgroupInstruction {
  const char* name;
  uint64_t a_desc, b_desc;
  int n, flags;
  Loc loc;
  // of a wgmma: the operands as [rows][16] and [n][16], from when the first thread needs them
  std::vector<float> a, b;
  int users = 0;  // threads that have used them
};

struct TensorMap {
  const char* base;
  std::array<uint64_t, 5> dims, strides;
  std::array<uint32_t, 5> box;
  uint32_t element_bytes, rank, swizzle_bytes;
  uint32_t magic;
};
static_assert(sizeof(TensorMap) <= 128);

struct TensorCopy {
  char* dst;
  TensorMap map;
  uint64_t* bar;
  std::array<int, 5> coords;
  Loc loc;
};

enum class Arithmetic { kFloat32, kSm80, kSm90 };

struct Settings {
  bool race = false, eager = false;
  Arithmetic arithmetic = Arithmetic::kFloat32;
  std::string order = "asc";
  unsigned seed = 0;
  int multiprocessors = 3, major = 9, minor = 0;
  int dynamic_shared_allowed = static_cast<int>(kDefaultShared);
};

struct Machine {
  Settings settings;

  // the launch
  const char* kernel = "";
  std::vector<const char*> launched;  // since set_buffers
  dim3 grid, block;
  int threads = 0, warps = 0;
  Body body = nullptr;
  void* closure = nullptr;
  std::mt19937 random;
  std::string report;  // of the first failure, which ends the launch

  // the block
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  int live = 0;
  std::array<Barrier, 16> barriers;
  std::array<std::deque<Collective>, kMaxWarps> collectives;  // one for each mask in use
  std::array<unsigned, kMaxWarps> live_lanes;                // of each warp, those that have not returned
  std::map<uint64_t*, MBarrier> mbarriers;
  std::vector<TensorCopy> tensor_copies;
  std::array<std::deque<WarpgroupInstruction>, kMaxWarps / 4> warpgroup_instructions;
  std::array<int, kMaxWarps> wgmma_components;  // of the vector clocks; count each warp's completed groups; -1: none
};
extern Machine machine;

// The thread whose accesses the compiler's callbacks check; null in the emulator's own code, which may run templates
// of the standard library that the linker took from a kernel's instrumented object file, and when the checker is off.
extern Fiber* checked;
class Unchecked {
 public:
  Unchecked() : saved_(checked) { checked = nullptr; }
  ~Unchecked() { checked = saved_; }
  Unchecked(const Unchecked&) = delete;
  Unchecked& operator=(const Unchecked&) = delete;

 private:
  Fiber* saved_;
};

// report.cpp
[[noreturn]] void fail(const std::string& what, Loc loc);
[[noreturn]] void fail_at(const std::string& what, const std::string& where);
std::string describe(const Fiber& fiber);
std::string describe(Loc loc);

// scheduler.cpp
void wait_while(const uint64_t* generation, uint64_t seen, Wait waits_in, Loc loc);
[[noreturn]] void abandon_launch();

// barrier.cpp
constexpr size_t kMaxCollectives = 4096, kCollectiveBytes = kMaxCollectives * 4096;
unsigned char* collective_slots();
void thread_returned(Fiber& fiber);
void reset_barriers();
std::vector<std::string> waiting_barriers();

// cp_async.cpp, tma.cpp, wgmma.cpp: at the end of a thread and of a block
void check_copies_done(Fiber& fiber);
void check_products_done(Fiber& fiber);
std::string warpgroup_disagreement();
bool run_tensor_copy();  // one of those under way; false if there is none
std::vector<std::string> describe_mbarriers();

}  // namespace emu
