// The threads that share a member of exemplar_steps: phases of about 50 microseconds, one after the other.
//
// No thread waits for another to arrive, only for the units of a phase to be done, which any thread may take: where
// cores are shared with other programs, a barrier would cost a time slice whenever one thread is not running.
#pragma once

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

#include <cstdint>

#include "cpu/simd.h"
#include "cpu/threads.h"

namespace icl::ICL_ISA {

// What the threads of a team share; all zero at first
struct alignas(64) Phase {
  uint64_t state;                // of the phase its number, the first and the end of the units that nobody has taken
  alignas(64) uint64_t pending;  // units not done
};

class Team {
 public:
  Team(Phase& shared, int64_t rank, int64_t size) : shared_(shared), rank_(rank), size_(size), opens_(rank == 0) {}

  int64_t rank() const { return rank_; }

  // The next phase, of units() units; who does a unit must not change its result. units() is called by one thread, when
  // the phase before is over.
  template <typename Units, typename Unit>
  ICL_INLINE void each(Units units, Unit unit) {
    if (size_ == 1) {
      const int64_t count = units();
      for (int64_t i = 0; i < count; ++i) unit(i);
      return;
    }
    phase_ = (phase_ + 1) & kPhases;
    if (opens_) {
      const uint64_t count = uint64_t(units());
      if (count == 0) return;  // the next phase is this thread's to open as well
      opens_ = false;
      __atomic_store_n(&shared_.pending, count, __ATOMIC_RELAXED);
      __atomic_store_n(&shared_.state, phase_ << 2 * kUnitBits | count, __ATOMIC_RELEASE);
    }
    uint64_t state = wait();
    while (state >> 2 * kUnitBits == phase_) {
      const uint64_t first = state >> kUnitBits & kUnits, end = state & kUnits;
      if (first == end) return;
      // from both ends: a thread meets the same units again in the next step, in its own cache
      const bool forward = rank_ % 2 == 0;
      const uint64_t left = forward ? state + (uint64_t(1) << kUnitBits) : state - 1;
      if (!__atomic_compare_exchange_n(&shared_.state, &state, left, true, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
        continue;
      unit(int64_t(forward ? first : end - 1));
      if (__atomic_sub_fetch(&shared_.pending, 1, __ATOMIC_ACQ_REL) == 0) {
        opens_ = true;
        return;
      }
      state = __atomic_load_n(&shared_.state, __ATOMIC_ACQUIRE);
    }
    // the phase is over, others are ahead: this thread goes through its program until it has caught up
  }

 private:
  static constexpr int kUnitBits = 18;
  static constexpr uint64_t kUnits = (uint64_t(1) << kUnitBits) - 1;
  static constexpr uint64_t kPhases = (uint64_t(1) << (64 - 2 * kUnitBits)) - 1;

  // until this thread's phase is open or over
  ICL_INLINE uint64_t wait() const {
    for (int64_t tries = 0;; ++tries) {
      const uint64_t state = __atomic_load_n(&shared_.state, __ATOMIC_ACQUIRE);
      if ((((state >> 2 * kUnitBits) - phase_) & kPhases) <= kPhases / 2) return state;
      if (tries < 1000) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
#if defined(__unix__) || defined(__APPLE__)
        sched_yield();
#endif
      }
    }
  }

  Phase& shared_;
  int64_t rank_, size_;
  uint64_t phase_ = 0;
  bool opens_;  // whether the next phase is this thread's to open
};

}  // namespace icl::ICL_ISA
