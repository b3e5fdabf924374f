#include "emu/arithmetic.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "emu/machine.h"

namespace emu {
namespace {

constexpr int kDepth = 16;  // of one instruction, for 2-byte elements
constexpr int kLeastExponent = -126, kLeastExponentHalf = -14;  // of normal numbers: float32 and bf16; fp16

struct TensorCore {
  int block;          // products added at once
  int fraction_bits;  // that are kept of an addend, relative to the largest
};
constexpr TensorCore kSm80{8, 24}, kSm90{16, 25};

constexpr uint32_t kMostUlps = 2;  // between 2^x and its approximation

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

int exponent(float x, int least) { return std::max(static_cast<int>(bits_of(x) >> 23 & 255) - 127, least); }

float float32_sum(const float* a, const float* b, float d) {
  float sum = 0;
  for (int k = 0; k < kDepth; ++k) sum += a[k] * b[k];
  return d + sum;
}

float truncated(double x) {
  if (std::fabs(x) >= 0x1p128) return std::copysign(std::numeric_limits<float>::infinity(), static_cast<float>(x));
  const auto nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

float block_sum(const float* a, const float* b, float d, int count, int fraction_bits, bool bf16) {
  const int least = bf16 ? kLeastExponent : kLeastExponentHalf;
  int largest = exponent(d, kLeastExponent);
  double product[kDepth], sum = d;
  for (int k = 0; k < count; ++k) {
    product[k] = static_cast<double>(a[k]) * static_cast<double>(b[k]);
    sum += product[k];
    if (product[k] != 0) largest = std::max(largest, exponent(a[k], least) + exponent(b[k], least));
  }
  if (std::isnan(sum)) return of_bits(0x7fffffff);
  if (std::isinf(sum)) return static_cast<float>(sum);
  // the conversion to an integer truncates; at most 17 addends below 2^27 stay far within 64 bits, and 53
  const double scale = std::ldexp(1.0, fraction_bits - largest);
  auto units = static_cast<int64_t>(d * scale);
  for (int k = 0; k < count; ++k) units += static_cast<int64_t>(product[k] * scale);
  return truncated(std::ldexp(static_cast<double>(units), largest - fraction_bits));
}

float tensor_core_sum(const float* a, const float* b, float d, bool bf16, TensorCore core) {
  for (int k = 0; k < kDepth; k += core.block) d = block_sum(a + k, b + k, d, core.block, core.fraction_bits, bf16);
  return d;
}

}  // namespace

float mma_sync_sum(const float* a, const float* b, float d, bool bf16) {
  const Unchecked unchecked;
  const Arithmetic arithmetic = machine.settings.arithmetic;
  if (arithmetic == Arithmetic::kFloat32) return float32_sum(a, b, d);
  return tensor_core_sum(a, b, d, bf16, arithmetic == Arithmetic::kSm80 ? kSm80 : kSm90);
}

float wgmma_sum(const float* a, const float* b, float d, bool bf16) {
  if (machine.settings.arithmetic == Arithmetic::kFloat32) return float32_sum(a, b, d);
  return tensor_core_sum(a, b, d, bf16, kSm90);
}

float exp2_approx(float x) {
  const Unchecked unchecked;
  if (machine.settings.arithmetic == Arithmetic::kFloat32) return std::exp2(x);
  constexpr float kLeastNormal = 0x1p-126f;
  if (std::fabs(x) < kLeastNormal) return 1;
  const float rounded = static_cast<float>(std::exp2(static_cast<double>(x)));
  if (rounded < kLeastNormal) return 0;
  if (!std::isfinite(rounded)) return rounded;
  uint32_t mixed = bits_of(x);  // a hash: neighbouring x are off by unrelated amounts
  mixed = (mixed ^ mixed >> 16) * 0x7feb352d;
  mixed = (mixed ^ mixed >> 15) * 0x846ca68b;
  mixed ^= mixed >> 16;
  return std::max(of_bits(bits_of(rounded) + mixed % (2 * kMostUlps + 1) - kMostUlps), kLeastNormal);
}

}  // namespace emu
