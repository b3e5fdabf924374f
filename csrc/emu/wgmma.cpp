// wgmma: matrix products of a warpgroup, operands in shared memory (A also in registers), done when waited for.
#include "emu/machine.h"

namespace emu {
namespace {

constexpr int kDepth = 16;  // of one instruction, for 2-byte elements
constexpr uint32_t kPoison = 0x7fa0dead;  // a signalling NaN: arithmetic on it, too, leaves other bits

// How an operand lies in shared memory (PTX ISA, "matrix descriptor"): start address, two offsets, swizzle.
struct Operand {
  uint32_t start, leading, stride, swizzle_bytes;
  bool mn_major;

  Operand(uint64_t desc, bool mn_major_)
      : start((desc & 0x3fff) << 4), leading((desc >> 16 & 0x3fff) << 4), stride((desc >> 32 & 0x3fff) << 4),
        mn_major(mn_major_) {
    constexpr uint32_t kSwizzles[] = {0, 128, 64, 32};
    swizzle_bytes = kSwizzles[desc >> 62];
  }

  // Offset in shared memory of 8 elements, 16 bytes: of one row along K, or of one k along M or N.
  uint32_t chunk(uint32_t mn, uint32_t k) const {
    uint32_t a = start;
    if (!mn_major && !swizzle_bytes) {
      a += mn % 8 * 16 + mn / 8 * stride + k / 8 * leading;
    } else if (!mn_major) {
      a += mn % 8 * swizzle_bytes + mn / 8 * stride + k * 2;
    } else if (!swizzle_bytes) {
      a += mn / 8 * stride + k % 8 * 16 + k / 8 * leading;
    } else {
      const uint32_t slab = swizzle_bytes / 2;  // elements of M or N that lie side by side
      a += mn % slab * 2 + mn / slab * leading + k % 8 * swizzle_bytes + k / 8 * stride;
    }
    return swizzle_bytes ? a ^ (a >> 3 & (swizzle_bytes - 1) & ~15u) : a;
  }

  template <class F>
  void for_each_chunk(uint32_t first_mn, uint32_t end_mn, F f) const {
    const uint32_t mn_step = mn_major ? 8 : 1, k_step = mn_major ? 1 : 8;
    for (uint32_t mn = first_mn; mn < end_mn; mn += mn_step) {
      for (uint32_t k = 0; k < kDepth; k += k_step) f(mn, k, chunk(mn, k));
    }
  }
};

float to_float(uint16_t bits, bool bf16) {
  if (bf16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

std::vector<float> load(const Operand& operand, uint32_t rows, bool bf16) {
  std::vector<float> values(size_t{rows} * kDepth);
  operand.for_each_chunk(0, rows, [&](uint32_t mn, uint32_t k, uint32_t offset) {
    uint16_t bits[8];
    std::memcpy(bits, machine.shared + offset, sizeof bits);
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t row = operand.mn_major ? mn + i : mn, depth = operand.mn_major ? k : k + i;
      values[row * kDepth + depth] = to_float(bits[i], bf16);
    }
  });
  return values;
}

void check_operand(const char* name, uint64_t desc, const Operand& operand, uint32_t rows, Loc loc) {
  // A swizzled pattern repeats every 8 rows; one that starts elsewhere needs the base offset, which is not emulated.
  if (desc >> 49 & 7 || (operand.swizzle_bytes && operand.start & 7 * operand.swizzle_bytes & ~127u)) {
    fail("wgmma: operand " + std::string(name) + " does not start where its swizzle pattern does", loc);
  }
  if (desc & 0x3ff1c000c000c000) fail("wgmma: a descriptor with reserved bits set", loc);
  operand.for_each_chunk(0, rows, [&](uint32_t, uint32_t, uint32_t offset) {
    if (offset + 16 > machine.shared_bytes) {
      fail("out of bounds: wgmma reads operand " + std::string(name) + " at dynamic shared memory + " +
               std::to_string(offset) + ", which has " + std::to_string(machine.shared_bytes) + " bytes",
           loc);
    }
  });
}

// The reads are those of the warp, its first lane's as far as the checker is concerned.
void check_reads(const Operand& operand, uint32_t first, uint32_t end, Loc loc) {
  Fiber& fiber = *machine.running;
  if (!machine.settings.race || fiber.context.lane) return;
  int& component = machine.wgmma_components[static_cast<size_t>(fiber.context.warp)];
  if (component < 0) component = new_component(-1, false);
  const Actor actor{static_cast<uint32_t>(component), fiber.products.open_group(), Proxy::kAsync};
  operand.for_each_chunk(first, end, [&](uint32_t, uint32_t, uint32_t offset) {
    check_access(machine.shared + offset, 16, Kind::kRead, site_of(loc), actor);
  });
}

// All threads of a warpgroup execute the same instructions; returns the number of this one.
size_t execute(const WarpgroupInstruction& instruction) {
  Fiber& fiber = *machine.running;
  const auto warpgroup = static_cast<size_t>(fiber.context.warp) / 4;
  if ((warpgroup + 1) * 128 > static_cast<size_t>(machine.threads)) {
    fail(std::string(instruction.name) + " needs a whole warpgroup of 128 threads", instruction.loc);
  }
  auto& all = machine.warpgroup_instructions[warpgroup];
  const size_t index = fiber.executed++;
  if (index == all.size()) {
    all.push_back(instruction);
    return index;
  }
  const WarpgroupInstruction& first = all[index];
  if (strcmp(first.name, instruction.name) || first.a_desc != instruction.a_desc ||
      first.b_desc != instruction.b_desc || first.n != instruction.n || first.flags != instruction.flags) {
    fail("the threads of the warpgroup execute different instructions: here " + std::string(instruction.name) +
             ", another thread " + first.name + " at " + describe(first.loc) + ", or the same with other operands",
         instruction.loc);
  }
  return index;
}

// A in registers: a thread has columns lane % 4 * 2 and the next, and 8 further, of the rows of its results.
void keep_registers(const Product& p, const Context& context) {
  const auto warp = static_cast<uint32_t>(context.warp), lane = static_cast<uint32_t>(context.lane);
  std::vector<float>& a = machine.warpgroup_instructions[warp / 4][p.instruction].a;
  a.resize(64 * kDepth);
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t row = warp % 4 * 16 + lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
    a[row * kDepth + k] = to_float(static_cast<uint16_t>(p.a[i]), p.bf16);
    a[row * kDepth + k + 1] = to_float(static_cast<uint16_t>(p.a[i] >> 16), p.bf16);
  }
}

void issue(Product p, uint64_t a_desc, uint64_t b_desc, Loc loc) {
  Fiber& fiber = *machine.running;
  if (p.n < 8 || p.n > 256 || p.n % 8) fail("wgmma: n is a multiple of 8 up to 256", loc);
  const Operand a(a_desc, p.a_mn_major), b(b_desc, p.b_mn_major);
  if (!p.register_a) check_operand("A", a_desc, a, 64, loc);
  check_operand("B", b_desc, b, static_cast<uint32_t>(p.n), loc);
  if (!fiber.wgmma_fenced) {
    fail("missing wgmma_fence: the registers of this wgmma may have been touched since the last wait", loc);
  }
  const int flags = p.bf16 | p.accumulate << 1 | p.a_mn_major << 2 | p.b_mn_major << 3 | p.register_a << 4;
  p.instruction = execute({"wgmma", a_desc, b_desc, p.n, flags, loc, {}, {}});
  p.loc = loc;
  const auto first_row = static_cast<uint32_t>(fiber.context.warp) % 4 * 16;
  if (!p.register_a) check_reads(a, first_row, first_row + 16, loc);
  check_reads(b, 0, static_cast<uint32_t>(p.n), loc);

  const auto count = static_cast<size_t>(p.n / 2);
  auto [found, is_new] = fiber.accumulators.try_emplace(p.d);
  if (is_new) {
    found->second.values.assign(p.d, p.d + count);
    found->second.n = p.n;
  } else if (found->second.n != p.n) {
    fail("wgmma: accumulators in use by a wgmma of another shape", loc);
  }
  found->second.last_group = fiber.products.open_group();
  for (size_t i = 0; i < count; ++i) std::memcpy(&p.d[i], &kPoison, sizeof kPoison);
  if (p.register_a) keep_registers(p, fiber.context);
  fiber.products.open.push_back(p);
}

void multiply(const Product& p, Fiber& fiber) {
  const auto warp = static_cast<uint32_t>(fiber.context.warp), lane = static_cast<uint32_t>(fiber.context.lane);
  WarpgroupInstruction& instruction = machine.warpgroup_instructions[warp / 4][p.instruction];
  if (instruction.users++ == 0) {
    if (!p.register_a) instruction.a = load(Operand(instruction.a_desc, p.a_mn_major), 64, p.bf16);
    instruction.b = load(Operand(instruction.b_desc, p.b_mn_major), static_cast<uint32_t>(p.n), p.bf16);
  }
  std::vector<float>& d = fiber.accumulators.at(p.d).values;
  if (!p.accumulate) std::fill(d.begin(), d.end(), 0.0f);
  // The thread's rows are lane / 4 and 8 below it in the warp's 16; its columns lane % 4 * 2 and the next, of every 8.
  for (uint32_t half = 0; half < 2; ++half) {
    const float* row = &instruction.a[(warp % 4 * 16 + lane / 4 + 8 * half) * kDepth];
    for (uint32_t j = 0; j < static_cast<uint32_t>(p.n) / 8; ++j) {
      for (uint32_t e = 0; e < 2; ++e) {
        const float* column = &instruction.b[(j * 8 + lane % 4 * 2 + e) * kDepth];
        float& own = d[j * 4 + 2 * half + e];
        own = wgmma_sum(row, column, own, p.bf16);
      }
    }
  }
  if (instruction.users == 128) {
    instruction.a = {};
    instruction.b = {};
  }
}

// What the last of the groups that write them has left in the accumulators.
void write_back(Fiber& fiber, uint32_t completed, Loc loc) {
  for (auto it = fiber.accumulators.begin(); it != fiber.accumulators.end();) {
    if (it->second.last_group > completed) {
      ++it;
      continue;
    }
    const std::vector<float>& values = it->second.values;
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::memcmp(&it->first[i], &kPoison, sizeof kPoison)) {
        fail("wgmma: an accumulator was written before the wgmma_wait that covers it", loc);
      }
      it->first[i] = values[i];
    }
    it = fiber.accumulators.erase(it);
  }
}

}  // namespace

void wgmma(float* d, int n, bool bf16, uint64_t a_desc, uint64_t b_desc, bool accumulate, bool a_mn_major,
           bool b_mn_major, Loc loc) {
  const Unchecked unchecked;
  Product p{};
  p.d = d;
  p.n = n;
  p.bf16 = bf16;
  p.accumulate = accumulate;
  p.a_mn_major = a_mn_major;
  p.b_mn_major = b_mn_major;
  issue(p, a_desc, b_desc, loc);
}

void wgmma_register_a(float* d, int n, bool bf16, const uint32_t* a4, uint64_t b_desc, bool accumulate,
                      bool b_mn_major, Loc loc) {
  const Unchecked unchecked;
  Product p{};
  p.d = d;
  p.n = n;
  p.bf16 = bf16;
  p.accumulate = accumulate;
  p.b_mn_major = b_mn_major;
  p.register_a = true;
  std::copy_n(a4, 4, p.a.begin());
  issue(p, 0, b_desc, loc);
}

void wgmma_fence(Loc loc) {
  const Unchecked unchecked;
  execute({"wgmma_fence", 0, 0, 0, 0, loc, {}, {}});
  machine.running->wgmma_fenced = true;
}

void wgmma_commit(Loc loc) {
  const Unchecked unchecked;
  execute({"wgmma_commit", 0, 0, 0, 0, loc, {}, {}});
  machine.running->products.commit();
}

void wgmma_wait(int keep, Loc loc) {
  const Unchecked unchecked;
  if (keep < 0 || keep > 7) fail("wgmma_wait: 0 to 7 groups may be under way", loc);
  execute({"wgmma_wait", 0, 0, keep, 0, loc, {}, {}});
  exchange(~0u, nullptr, 0, kTagWgmmaWait, false, loc);  // so that all lanes have issued what this one computes
  Fiber& fiber = *machine.running;
  fiber.wgmma_fenced = false;
  Groups<Product>& products = fiber.products;
  while (static_cast<int>(products.committed.size()) > keep) {
    for (const Product& p : products.committed.front()) multiply(p, fiber);
    products.committed.pop_front();
    ++products.completed;
  }
  write_back(fiber, products.completed, loc);
  const int component = machine.wgmma_components[static_cast<size_t>(fiber.context.warp)];
  if (component >= 0) advance(fiber.clock, static_cast<uint32_t>(component), products.completed);
}

void set_max_registers(int n, bool increase, Loc loc) {
  const Unchecked unchecked;
  if (n < 24 || n > 256 || n % 8) fail("setmaxnreg: a multiple of 8 from 24 to 256", loc);
  execute({increase ? "setmaxnreg.inc" : "setmaxnreg.dec", 0, 0, n, 0, loc, {}, {}});
}

void check_products_done(Fiber& fiber) {
  if (fiber.products.idle()) return;
  const auto& groups = fiber.products;
  const Product* p = groups.open.empty() ? nullptr : &groups.open.front();
  for (const auto& group : groups.committed) {
    if (!group.empty()) p = &group.front();
  }
  if (p) fail("the thread returns with a wgmma under way", p->loc);
}

std::string warpgroup_disagreement() {
  for (const Fiber& fiber : machine.fibers) {
    const auto& all = machine.warpgroup_instructions[static_cast<size_t>(fiber.context.warp) / 4];
    if (fiber.executed == all.size()) continue;
    const WarpgroupInstruction& missed = all[fiber.executed];
    return "not all threads of the warpgroup execute " + std::string(missed.name) + "\n  kernel " + machine.kernel +
           ", " + describe(fiber) + " does not\n  at " + describe(missed.loc);
  }
  return "";
}

}  // namespace emu
