// Working memory of a kernel: one aligned block, taken before the threads start (no exception may leave a thread).
#pragma once

#include <cstdint>
#include <new>

#include "cpu/integers.h"

namespace icl::ICL_ISA {

// Cuts consecutive pieces, each beginning a cache line.
struct Cutter {
  float* base;  // or null, to measure
  int64_t used = 0;

  float* take(int64_t floats) {
    float* piece = base ? base + used : nullptr;
    used += round_up(floats, 16);
    return piece;
  }
};

struct Scratch {
  // cut(Cutter&) takes the pieces. It runs twice: to measure, and when there is memory.
  template <typename Cut>
  explicit Scratch(Cut cut) {
    Cutter measure{nullptr};
    cut(measure);
    data = static_cast<float*>(::operator new(size_t(measure.used * 4 + 64), kLine));
    Cutter cutter{data};
    cut(cutter);
  }
  ~Scratch() { ::operator delete(data, kLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  static constexpr std::align_val_t kLine{64};
  float* data;
};

}  // namespace icl::ICL_ISA
