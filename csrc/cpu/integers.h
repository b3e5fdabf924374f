// Arithmetic of sizes.
#pragma once

#include <cstdint>

namespace icl::ICL_ISA {

// Of two integers of any width, as the wider: an int with an int64_t is an int64_t
template <typename A, typename B>
constexpr auto min(A a, B b) {
  return a < b ? a : b;
}

template <typename A, typename B>
constexpr auto max(A a, B b) {
  return a > b ? a : b;
}

constexpr int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace icl::ICL_ISA
