// What the attention kernels share: strips of query rows, score tiles, softmax over keys, products with values.
//
// A strip is ROWS query rows of one head. Its scores lie with the rows along the lanes, [keys, ROWS]: the queries are
// transposed once, keys are read as they lie in memory and broadcast, and the softmax needs no sum across lanes. The
// sum over the head width runs in one fixed order, so a backward recomputes the very scores of its forward.
#pragma once

#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace icl::ICL_ISA {

constexpr int ROWS = 48;
constexpr int VECS = ROWS / W;          // vectors that hold one key's scores
constexpr int TRIPLE = 3;               // ... of which this many are summed at a time, for KEYS keys:
constexpr int KEYS = W == 16 ? 8 : 4;   // 24 sums in 32 registers, 12 in 16
constexpr int BAND = W == 16 ? 12 : 6;  // rows of a product summed at a time, by 2 vectors of columns: 24 or 12 sums
static_assert(VECS % TRIPLE == 0 && ROWS % BAND == 0);

constexpr float INFINITE = __builtin_inff();

ICL_INLINE int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }
ICL_INLINE int32_t greater(int32_t a, int32_t b) { return a > b ? a : b; }

// row [depth] of a strip -> lane r of to [depth, ROWS], times scale
template <typename T>
ICL_INLINE void transpose_row(const T* row, int64_t depth, float scale, int r, float* to) {
  for (int64_t d = 0; d < depth; ++d) to[d * ROWS + r] = widen(row[d]) * scale;
}

// x[i][l] <-> x[l][i], by swapping the off-diagonal halves of ever smaller blocks
template <int HALF>
ICL_INLINE void transpose_block(vf* x) {
  vi upper{}, lower{};  // lanes of (x[i], x[i + HALF]) that the two become
  for (int l = 0; l < W; ++l) {
    upper[l] = l & HALF ? W + l - HALF : l;
    lower[l] = l & HALF ? W + l : l + HALF;
  }
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & HALF)) {
      const vf a = x[i], b = x[i + HALF];
      x[i] = __builtin_shuffle(a, b, upper), x[i + HALF] = __builtin_shuffle(a, b, lower);
    }
  if constexpr (HALF > 1) transpose_block<HALF / 2>(x);
}

// consecutive rows [rows, ld] of which `depth` count -> to [depth, ROWS], times scale; 0 in the unused lanes
template <typename T>
static void transpose(const T* from, int rows, int64_t depth, int64_t ld, float scale, float* to) {
  int r = 0;
  for (; r + W <= rows; r += W) {
    int64_t d = 0;
    for (; d + W <= depth; d += W) {
      vf x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) x[i] = load(from + (r + i) * ld + d) * splat(scale);
      transpose_block<W / 2>(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to + (d + i) * ROWS + r, x[i]);
    }
    for (; d < depth; ++d)
      for (int i = 0; i < W; ++i) to[d * ROWS + r + i] = widen(from[(r + i) * ld + d]) * scale;
  }
  for (; r < rows; ++r) transpose_row(from + r * ld, depth, scale, r, to);
  if (rows < ROWS)
    for (int64_t d = 0; d < depth; ++d)
      for (r = rows; r < ROWS; ++r) to[d * ROWS + r] = 0;
}

// Which keys the rows of a strip see.
struct Strip {
  int rows;                                   // in use; the unused ones repeat the last
  int32_t first[ROWS], last[ROWS];            // keys that a row sees; last = first - 1: none
  int32_t some_begin[VECS], some_end[VECS];   // keys that at least one row of a vector sees
  int32_t every_begin[VECS], every_end[VECS]; // keys that all of them see
  int32_t begin, end;                         // keys that some row of the strip sees

  void see(int r, int64_t position, int64_t window) {
    last[r] = int32_t(position);
    first[r] = window > 0 && window <= position ? int32_t(position - window + 1) : 0;
  }

  void finish() {
    for (int r = rows; r < ROWS; ++r) first[r] = first[rows - 1], last[r] = last[rows - 1];
    begin = first[0], end = last[0] + 1;
    for (int v = 0; v < VECS; ++v) {
      int32_t least_first = first[v * W], most_first = least_first, least_last = last[v * W], most_last = least_last;
      for (int r = v * W; r < v * W + W; ++r) {
        least_first = lesser(least_first, first[r]), most_first = greater(most_first, first[r]);
        least_last = lesser(least_last, last[r]), most_last = greater(most_last, last[r]);
      }
      some_begin[v] = least_first, some_end[v] = most_last + 1;
      every_begin[v] = most_first, every_end[v] = least_last + 1;
      begin = lesser(begin, least_first), end = greater(end, most_last + 1);
    }
  }

  // keys of begin..end-1 that rows r..r+n-1 see, counted from `begin_of_chunk`
  void band(int r, int n, int32_t chunk, int32_t chunk_end, int64_t* from, int64_t* to) const {
    int32_t least = first[r], most = last[r];
    for (int i = r + 1; i < r + n; ++i) least = lesser(least, first[i]), most = greater(most, last[i]);
    least = greater(least, chunk), most = lesser(most + 1, chunk_end);
    *from = least - chunk;
    *to = most > least ? most - chunk : *from;
  }
};

// Longer sums are taken in pieces: errors grow with the length of a piece more than with their number.
constexpr int64_t SCORE_PIECE = 64;

// s[j] = k[j] . q for KN keys and VN vectors of rows
template <int KN, int VN>
ICL_INLINE void score_tile(const float* q,  // [depth, ROWS]
                           const float* k,  // [KN, ldk]
                           int64_t depth, int64_t ldk,
                           float* s) {  // [KN, ROWS]
  int64_t begin = 0;
  do {
    const int64_t end = depth - begin < SCORE_PIECE ? depth : begin + SCORE_PIECE;
    vf sums[KN][VN] = {};
    for (int64_t d = begin; d < end; ++d) {
      vf x[VN];
#pragma GCC unroll 3
      for (int v = 0; v < VN; ++v) x[v] = load(q + d * ROWS + v * W);
#pragma GCC unroll 8
      for (int j = 0; j < KN; ++j) {
        vf y = splat(k[j * ldk + d]);
#pragma GCC unroll 3
        for (int v = 0; v < VN; ++v) sums[j][v] += x[v] * y;
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < KN; ++j)
#pragma GCC unroll 3
      for (int v = 0; v < VN; ++v) {
        float* to = s + j * ROWS + v * W;
        store(to, begin == 0 ? sums[j][v] : load(to) + sums[j][v]);
      }
    begin = end;
  } while (begin < depth);
}

template <int VN>
static void score_keys(const float* q, const float* k, int64_t depth, int64_t ldk, int32_t keys, float* s) {
  if (keys == KEYS) return score_tile<KEYS, VN>(q, k, depth, ldk, s);
  for (int j = 0; j < keys; ++j) score_tile<1, VN>(q, k + j * ldk, depth, ldk, s + j * ROWS);
}

// s = k . q where a row may see the key: keys begin..end-1; the rest of s is not written
static void score_chunk(const Strip& strip,
                        const float* q,  // [depth, ROWS]
                        const float* k,  // [end - begin, ldk]
                        int64_t depth, int64_t ldk, int32_t begin, int32_t end,
                        float* s) {  // [end - begin, ROWS]
  for (int group = 0; group < VECS; group += TRIPLE)
    for (int32_t j = begin; j < end; j += KEYS) {
      const int32_t keys = lesser(KEYS, end - j);
      int from = TRIPLE, to = 0;
      for (int v = 0; v < TRIPLE; ++v)
        if (j < strip.some_end[group + v] && j + keys > strip.some_begin[group + v]) {
          from = from < v ? from : v;
          to = v + 1;
        }
      const float* queries = q + (group + from) * W;
      const float* key = k + (j - begin) * ldk;
      float* out = s + (j - begin) * ROWS + (group + from) * W;
      if (to - from == 3) score_keys<3>(queries, key, depth, ldk, keys, out);
      if (to - from == 2) score_keys<2>(queries, key, depth, ldk, keys, out);
      if (to - from == 1) score_keys<1>(queries, key, depth, ldk, keys, out);
    }
}

ICL_INLINE vf if_seen(const Strip& strip, int v, int32_t key, vf seen, vf unseen) {
  vi first, last;
  std::memcpy(&first, strip.first + v * W, sizeof first);
  std::memcpy(&last, strip.last + v * W, sizeof last);
  return (first <= key) & (last >= key) ? seen : unseen;
}

// The softmax of a strip over the chunks of keys seen so far.
struct Softmax {
  float peak[ROWS];    // largest score
  float total[ROWS];   // sum of exp(score - peak)
  float shrink[ROWS];  // exp(peak before the last chunk - peak): the factor on what was summed with the old peak

  void reset() {
    for (int r = 0; r < ROWS; ++r) peak[r] = -INFINITE, total[r] = 0;
  }

  // s [end - begin, ROWS]: scores -> exp(score - peak), 0 where the row does not see the key
  void add_chunk(const Strip& strip, int32_t begin, int32_t end, float* s) {
    for (int v = 0; v < VECS; ++v) {
      const int32_t from = lesser(greater(begin, strip.some_begin[v]), end);
      const int32_t to = greater(lesser(end, strip.some_end[v]), from);
      float* const column = s + v * W;
      for (int32_t j = begin; j < from; ++j) store(column + (j - begin) * ROWS, vf{});
      for (int32_t j = to; j < end; ++j) store(column + (j - begin) * ROWS, vf{});
      const auto at = [&](int32_t j) { return column + (j - begin) * ROWS; };
      const vf old = load(peak + v * W);
      // several maxima and sums: each step of one would wait for the last
      vf best[4] = {old, old, old, old}, sums[4] = {};
      const int32_t all_from = lesser(greater(from, strip.every_begin[v]), to);
      const int32_t all_to = greater(lesser(to, strip.every_end[v]), all_from);
      const auto mask = [&](int32_t j) {
        vf x = if_seen(strip, v, j, load(at(j)), splat(-INFINITE));
        store(at(j), x);
        best[0] = at_least(x, best[0]);  // drops a NaN: its exp is NaN, and so is the sum
      };
      for (int32_t j = from; j < all_from; ++j) mask(j);
      for (int32_t j = all_to; j < to; ++j) mask(j);
      int32_t j = all_from;
      for (; j + 4 <= all_to; j += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) best[i] = at_least(load(at(j + i)), best[i]);
      for (; j < all_to; ++j) best[0] = at_least(load(at(j)), best[0]);
      best[0] = at_least(at_least(best[0], best[1]), at_least(best[2], best[3]));
      // nothing but -inf so far: any finite peak keeps -inf - peak from being NaN
      const vf base = best[0] == splat(-INFINITE) ? vf{} : best[0];
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
// the factor is 1. ACROSS: a is [n, lda], rows along the lanes; else [RN, lda]. Adds 0 * c to `check`: NaN where c is
// not finite.
template <bool ACROSS, int RN, int VN>
ICL_INLINE void product_tile(const float* a, int64_t lda,
                             const float* b, int64_t ldb,  // [n, ldb]
                             int64_t n,
                             float* c, int64_t ldc,                      // [RN, ldc]
                             const float* before, const float* after,  // [RN]
                             vf* check) {
  vf sums[RN][VN] = {};
  for (int64_t i = 0; i < n; ++i) {
    vf y[VN];
#pragma GCC unroll 4
    for (int v = 0; v < VN; ++v) y[v] = load(b + i * ldb + v * W);
#pragma GCC unroll 12
    for (int r = 0; r < RN; ++r) {
      vf x = splat(ACROSS ? a[i * lda + r] : a[r * lda + i]);
#pragma GCC unroll 4
      for (int v = 0; v < VN; ++v) sums[r][v] += x * y[v];
    }
  }
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

template <bool ACROSS, int RN>
static void product_band(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, int64_t cols, float* c,
                         int64_t ldc, const float* before, const float* after, vf* check) {
  int64_t col = 0;
  for (; col + 2 * W <= cols; col += 2 * W)
    product_tile<ACROSS, RN, 2>(a, lda, b + col, ldb, n, c + col, ldc, before, after, check);
  if (col < cols) product_tile<ACROSS, RN, 1>(a, lda, b + col, ldb, n, c + col, ldc, before, after, check);
}

// c [rows, cols] as in product_tile, cols a multiple of W. range(row, rows, &from, &to) says which part of the sum is
// not known to be 0. Returns whether all of c is finite.
template <bool ACROSS, typename Range>
ICL_INLINE bool product(int rows, int64_t cols, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                        int64_t ldc, const float* before, const float* after, Range range) {
  vf check{};
  for (int r = 0; r < rows;) {
    const int left = rows - r;
    const int n = left >= BAND ? BAND : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    int64_t from, to;
    range(r, n, &from, &to);
    const float* a_from = ACROSS ? a + from * lda + r : a + r * lda + from;
    const float* b_from = b + from * ldb;
    const float* factor = before ? before + r : nullptr;
    const float* last = after ? after + r : nullptr;
    auto run = [&](auto band) {
      band(a_from, lda, b_from, ldb, to - from, cols, c + r * ldc, ldc, factor, last, &check);
    };
    if (n == BAND) run(product_band<ACROSS, BAND>);
    else if (n == 8) run(product_band<ACROSS, 8>);
    else if (n == 4) run(product_band<ACROSS, 4>);
    else if (n == 2) run(product_band<ACROSS, 2>);
    else run(product_band<ACROSS, 1>);
    r += n;
  }
  return sum(check) == 0;
}

}  // namespace icl::ICL_ISA
