// What the attention kernels share: strips of query rows, score tiles, softmax over keys, products with values.
//
// A strip is kRows query rows of one head. Its scores lie with the rows along the lanes, [keys, kRows]: the queries are
// transposed once, keys are read as they lie in memory and broadcast, and the softmax needs no sum across lanes. The
// sum over the head width runs in one fixed order, so a backward recomputes the very scores of its forward.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/integers.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"
#include "cpu/vector_math.h"

namespace icl::ICL_ISA {

constexpr int kRows = 48;
constexpr int kVectors = kRows / W;      // vectors that hold one key's scores
constexpr int kGroup = 3;                // ... of which this many are summed at a time, for kKeys keys:
constexpr int kKeys = W == 16 ? 8 : 4;   // 24 sums in 32 registers, 12 in 16
constexpr int kBand = W == 16 ? 12 : 6;  // rows of a product summed at a time, by 2 vectors of columns: 24 or 12 sums
static_assert(kVectors % kGroup == 0 && kRows % kBand == 0);

// row [depth] of a strip -> lane r of to [depth, kRows], times scale
template <typename T>
ICL_INLINE void transpose_row(const T* row, int64_t depth, float scale, int r, float* to) {
  for (int64_t d = 0; d < depth; ++d) to[d * kRows + r] = widen(row[d]) * scale;
}

// consecutive rows [rows, ld] of which `depth` count -> to [depth, kRows], times scale; 0 in the unused lanes
template <typename T>
static void transpose(const T* from, int rows, int64_t depth, int64_t ld, float scale, float* to) {
  int r = 0;
  for (; r + W <= rows; r += W) {
    int64_t d = 0;
    for (; d + W <= depth; d += W)
      transpose_block([&](int i) { return load(from + (r + i) * ld + d) * splat(scale); }, to + d * kRows + r, kRows);
    for (; d < depth; ++d)
      for (int i = 0; i < W; ++i) to[d * kRows + r + i] = widen(from[(r + i) * ld + d]) * scale;
  }
  for (; r < rows; ++r) transpose_row(from + r * ld, depth, scale, r, to);
  if (rows < kRows)
    for (int64_t d = 0; d < depth; ++d)
      for (r = rows; r < kRows; ++r) to[d * kRows + r] = 0;
}

// Which keys the rows of a strip see.
struct Strip {
  int rows;                                            // in use; the unused ones repeat the last
  int32_t first[kRows], last[kRows];                   // keys that a row sees; last = first - 1: none
  int32_t some_begin[kVectors], some_end[kVectors];    // keys that at least one row of a vector sees
  int32_t every_begin[kVectors], every_end[kVectors];  // keys that all of them see
  int32_t begin, end;                                  // keys that some row of the strip sees

  void see(int r, int64_t position, int64_t window) {
    last[r] = int32_t(position);
    first[r] = window > 0 && window <= position ? int32_t(position - window + 1) : 0;
  }

  void finish() {
    for (int r = rows; r < kRows; ++r) first[r] = first[rows - 1], last[r] = last[rows - 1];
    begin = first[0], end = last[0] + 1;
    for (int v = 0; v < kVectors; ++v) {
      int32_t least_first = first[v * W], most_first = least_first, least_last = last[v * W], most_last = least_last;
      for (int r = v * W; r < v * W + W; ++r) {
        least_first = min(least_first, first[r]), most_first = max(most_first, first[r]);
        least_last = min(least_last, last[r]), most_last = max(most_last, last[r]);
      }
      some_begin[v] = least_first, some_end[v] = most_last + 1;
      every_begin[v] = most_first, every_end[v] = least_last + 1;
      begin = min(begin, least_first), end = max(end, most_last + 1);
    }
  }

  // keys of begin..end-1 that rows r..r+n-1 see, counted from `chunk`
  void band(int r, int n, int32_t chunk, int32_t chunk_end, int64_t* from, int64_t* to) const {
    int32_t least = first[r], most = last[r];
    for (int i = r + 1; i < r + n; ++i) least = min(least, first[i]), most = max(most, last[i]);
    least = max(least, chunk), most = min(most + 1, chunk_end);
    *from = least - chunk;
    *to = most > least ? most - chunk : *from;
  }
};

// Longer sums are taken in pieces: errors grow with the length of a piece more than with their number.
constexpr int64_t kScorePiece = 64;

// s[j] = k[j] . q for KN keys and VN vectors of rows
template <int KN, int VN>
ICL_INLINE void score_tile(const float* q,  // [depth, kRows]
                           const float* k,  // [KN, ldk]
                           int64_t depth, int64_t ldk,
                           float* s) {  // [KN, kRows]
  int64_t begin = 0;
  do {
    const int64_t end = min(depth, begin + kScorePiece);
    vf sums[KN][VN] = {};
    multiply_add(k + begin, ldk, 1, q + begin * kRows, kRows, end - begin, sums);
#pragma GCC unroll 8
    for (int j = 0; j < KN; ++j)
#pragma GCC unroll 3
      for (int v = 0; v < VN; ++v) {
        float* to = s + j * kRows + v * W;
        store(to, begin == 0 ? sums[j][v] : load(to) + sums[j][v]);
      }
    begin = end;
  } while (begin < depth);
}

template <int VN>
static void score_keys(const float* q, const float* k, int64_t depth, int64_t ldk, int32_t keys, float* s) {
  if (keys == kKeys) return score_tile<kKeys, VN>(q, k, depth, ldk, s);
  for (int j = 0; j < keys; ++j) score_tile<1, VN>(q, k + j * ldk, depth, ldk, s + j * kRows);
}

// s = k . q where a row may see the key: keys begin..end-1; the rest of s is not written
static void score_chunk(const Strip& strip,
                        const float* q,  // [depth, kRows]
                        const float* k,  // [end - begin, ldk]
                        int64_t depth, int64_t ldk, int32_t begin, int32_t end,
                        float* s) {  // [end - begin, kRows]
  for (int group = 0; group < kVectors; group += kGroup)
    for (int32_t j = begin; j < end; j += kKeys) {
      const int32_t keys = min(kKeys, end - j);
      int from = kGroup, to = 0;
      for (int v = 0; v < kGroup; ++v)
        if (j < strip.some_end[group + v] && j + keys > strip.some_begin[group + v]) {
          from = min(from, v);
          to = v + 1;
        }
      const float* queries = q + (group + from) * W;
      const float* key = k + (j - begin) * ldk;
      float* out = s + (j - begin) * kRows + (group + from) * W;
      if (to - from == 3) score_keys<3>(queries, key, depth, ldk, keys, out);
      if (to - from == 2) score_keys<2>(queries, key, depth, ldk, keys, out);
      if (to - from == 1) score_keys<1>(queries, key, depth, ldk, keys, out);
    }
}

ICL_INLINE vf if_seen(const Strip& strip, int v, int32_t key, vf seen, vf unseen) {
  vi first, last;
  std::memcpy(&first, strip.first + v * W, sizeof first);
  std::memcpy(&last, strip.last + v * W, sizeof last);
  return ((first <= key) & (last >= key)) ? seen : unseen;
}

// The softmax of a strip over the chunks of keys seen so far.
struct Softmax {
  float peak[kRows];    // largest score
  float total[kRows];   // sum of exp(score - peak)
  float shrink[kRows];  // exp(peak before the last chunk - peak): the factor on what was summed with the old peak

  void reset() {
    for (int r = 0; r < kRows; ++r) peak[r] = -INFINITY, total[r] = 0;
  }

  // s [end - begin, kRows]: scores -> exp(score - peak), 0 where the row does not see the key
  void add_chunk(const Strip& strip, int32_t begin, int32_t end, float* s) {
    for (int v = 0; v < kVectors; ++v) {
      const int32_t from = min(max(begin, strip.some_begin[v]), end);
      const int32_t to = max(min(end, strip.some_end[v]), from);
      float* const column = s + v * W;
      for (int32_t j = begin; j < from; ++j) store(column + (j - begin) * kRows, vf{});
      for (int32_t j = to; j < end; ++j) store(column + (j - begin) * kRows, vf{});
      const auto at = [&](int32_t j) { return column + (j - begin) * kRows; };
      const vf old = load(peak + v * W);
      // several maxima and sums: each step of one would wait for the last
      vf best[4] = {old, old, old, old}, sums[4] = {};
      const int32_t all_from = min(max(from, strip.every_begin[v]), to);
      const int32_t all_to = max(min(to, strip.every_end[v]), all_from);
      const auto mask = [&](int32_t j) {
        vf x = if_seen(strip, v, j, load(at(j)), splat(-INFINITY));
        store(at(j), x);
        best[0] = max(x, best[0]);  // drops a NaN: its exp is NaN, and so is the sum
      };
      for (int32_t j = from; j < all_from; ++j) mask(j);
      for (int32_t j = all_to; j < to; ++j) mask(j);
      int32_t j = all_from;
      for (; j + 4 <= all_to; j += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) best[i] = max(load(at(j + i)), best[i]);
      for (; j < all_to; ++j) best[0] = max(load(at(j)), best[0]);
      best[0] = max(max(best[0], best[1]), max(best[2], best[3]));
      // nothing but -inf so far: any finite peak keeps -inf - peak from being NaN
      const vf base = best[0] == splat(-INFINITY) ? vf{} : best[0];
      for (j = from; j + 4 <= to; j += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          vf weight = exp_nonpositive(load(at(j + i)) - base);
          store(at(j + i), weight);
          sums[i] += weight;
        }
      for (; j < to; ++j) {
        vf weight = exp_nonpositive(load(at(j)) - base);
        store(at(j), weight);
        sums[0] += weight;
      }
      const vf factor = exp_nonpositive(old - base);
      store(peak + v * W, best[0]);
      store(total + v * W, load(total + v * W) * factor + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
      store(shrink + v * W, factor);
    }
  }
};

// c = after * (before * c + a b) for RN rows and VN vectors of columns; without `before` c starts at 0, without `after`
// the factor is 1. kTransposed: a is [n, lda], rows along the lanes; else [RN, lda]. Adds 0 * c to `check`: NaN where c
// is not finite.
template <bool kTransposed, int RN, int VN>
ICL_INLINE void product_tile(const float* a, int64_t lda,
                             const float* b, int64_t ldb,  // [n, ldb]
                             int64_t n,
                             float* c, int64_t ldc,                      // [RN, ldc]
                             const float* before, const float* after,  // [RN]
                             vf* check) {
  vf sums[RN][VN] = {};
  multiply_add(a, kTransposed ? 1 : lda, kTransposed ? lda : 1, b, ldb, n, sums);
  // only now: a short sum added to a long one is rounded once, not at every step
  if (before)
#pragma GCC unroll 12
    for (int r = 0; r < RN; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VN; ++v) sums[r][v] += load(c + r * ldc + v * W) * splat(before[r]);
  vf zeros{};
#pragma GCC unroll 12
  for (int r = 0; r < RN; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VN; ++v) {
      vf out = after ? sums[r][v] * splat(after[r]) : sums[r][v];
      zeros += out * vf{};
      store(c + r * ldc + v * W, out);
    }
  *check += zeros;
}

template <bool kTransposed, int RN>
static void product_band(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, int64_t cols, float* c,
                         int64_t ldc, const float* before, const float* after, vf* check) {
  int64_t col = 0;
  for (; col + 2 * W <= cols; col += 2 * W)
    product_tile<kTransposed, RN, 2>(a, lda, b + col, ldb, n, c + col, ldc, before, after, check);
  if (col < cols) product_tile<kTransposed, RN, 1>(a, lda, b + col, ldb, n, c + col, ldc, before, after, check);
}

// c [rows, cols] as in product_tile, cols a multiple of W. range(row, rows, &from, &to) says which part of the sum is
// not known to be 0. Returns whether all of c is finite.
template <bool kTransposed, typename Range>
ICL_INLINE bool product(int rows, int64_t cols, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                        int64_t ldc, const float* before, const float* after, Range range) {
  vf check{};
  for (int r = 0; r < rows;) {
    const int left = rows - r;
    const int n = left >= kBand ? kBand : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    int64_t from, to;
    range(r, n, &from, &to);
    const float* a_from = kTransposed ? a + from * lda + r : a + r * lda + from;
    const float* b_from = b + from * ldb;
    const float* factor = before ? before + r : nullptr;
    const float* last = after ? after + r : nullptr;
    auto run = [&](auto band) {
      band(a_from, lda, b_from, ldb, to - from, cols, c + r * ldc, ldc, factor, last, &check);
    };
    if (n == kBand) run(product_band<kTransposed, kBand>);
    else if (n == 8) run(product_band<kTransposed, 8>);
    else if (n == 4) run(product_band<kTransposed, 4>);
    else if (n == 2) run(product_band<kTransposed, 2>);
    else run(product_band<kTransposed, 1>);
    r += n;
  }
  return sum_of_lanes(check) == 0;
}

}  // namespace icl::ICL_ISA
