// Vector clocks: which accesses of which thread are known to have happened before the present.
//
// A clock has a component for every thread, which counts its releases (barriers, arrivals, fences), and further ones
// for what runs beside the threads: each thread's cp.async and each warp's wgmma count completed groups, each
// mbarrier's TMA copies count completed phases. An access made by component k at count c happened before everything
// done by a thread whose clock shows k at c or more.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace emu {

using Clock = std::vector<uint32_t>;

inline uint32_t known(const Clock& clock, uint32_t component) {
  return component < clock.size() ? clock[component] : 0;
}

inline void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

inline void advance(Clock& clock, uint32_t component, uint32_t count) {
  if (clock.size() <= component) clock.resize(component + 1);
  clock[component] = std::max(clock[component], count);
}

// A fence.proxy.async of a thread: covers its own accesses up to `own`, and its cp.async groups up to `copies`; other
// threads have seen it when their clock shows more than `own`.
struct Fence {
  uint32_t own, copies;
};

}  // namespace emu
