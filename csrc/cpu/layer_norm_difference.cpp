// layer_norm_difference: LN(x) - LN(x - d) for every variant d, for the instruction set in use.
//
// With xc, dc and lc the centred x, d and x - d, S the larger and y the row (xc or lc) of the smaller of the standard
// deviations sd and sd', it is gain (dc / S + y (var' - var) / ((sd + sd') sd sd')), var' - var = -mean(dc (xc + lc)).
// Neither term exceeds what d is beside S, so every rounding is relative to d, whether d is tiny, all of x, or far
// larger. A row is read from memory once and goes through several passes in the cache. Each is centred twice: the first
// mean is rounded at the size of the row, the second is of what it left. Without centring, as in an RMSNorm, xc, dc and
// lc are the rows as they are.
#include <cmath>
#include <cstdint>

#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

struct Rows {  // of a thread, each [round_up(C, W)], zero beyond C
  float* x;
  float* centred;  // or x again, where nothing is centred; so the next two
  float* removed;  // centred too, in the end
  float* left;     // x - removed, centred in the end
  float* rest;     // what rounding took from it
};

// The mean of f(i), a vector of terms from i on, over C terms. In pieces: errors grow with the length of a piece more
// than with their number.
template <typename F>
ICL_INLINE float mean(int64_t c, F f) {
  constexpr int64_t kPiece = 32 * W;
  vf total{};
  for (int64_t first = 0; first < c; first += kPiece) {
    const int64_t end = min(first + kPiece, c);
    vf even{}, odd{};
    int64_t i = first;
    for (; i + W < end; i += 2 * W) {
      even += f(i);
      odd += f(i + W);
    }
    if (i < end) even += f(i);
    total += even + odd;
  }
  float sum = 0;  // lane after lane: sum_of_lanes() would change last bits
  for (int i = 0; i < W; ++i) sum += total[i];
  return sum / float(c);
}

ICL_INLINE void clear_tail(float* row, int64_t c) {
  for (int64_t i = c; i < round_up(c, W); ++i) row[i] = 0;
}

// row + rest, minus its mean
ICL_INLINE void centre(float* row, const float* rest, int64_t c) {
  for (int round = 0; round < 2; ++round) {
    const vf middle = splat(mean(c, [=](int64_t i) { return load(row + i); }));
    for (int64_t i = 0; i < c; i += W) {
      const vf shifted = load(row + i) - middle;
      store(row + i, rest && round == 0 ? shifted + load(rest + i) : shifted);
    }
    clear_tail(row, c);
  }
}

// left + rest = x - removed, exactly
ICL_INLINE void subtract(const Rows& rows, int64_t c) {
  for (int64_t i = 0; i < c; i += W) {
    const vf x = load(rows.x + i), d = load(rows.removed + i), difference = x - d, taken = difference - x;
    store(rows.left + i, difference);
    store(rows.rest + i, (x - (difference - taken)) - (d + taken));
  }
}

ICL_INLINE float mean_square(const float* row, int64_t c) {
  return mean(c, [=](int64_t i) { return load(row + i) * load(row + i); });
}

template <typename T>
void run_variant(const LayerNormDifference& p, const Rows& rows, const float* gain, float sd, T* out) {
  if (p.centre) {
    subtract(rows, p.c);
    centre(rows.removed, nullptr, p.c);
    centre(rows.left, rows.rest, p.c);
  } else {
    for (int64_t i = 0; i < p.c; i += W) store(rows.left + i, load(rows.x + i) - load(rows.removed + i));
  }
  const float sd_left = sqrtf(mean_square(rows.left, p.c) + p.eps);
  const float grown = -mean(p.c, [&](int64_t i) {
    return load(rows.removed + i) * (load(rows.centred + i) + load(rows.left + i));
  });
  const bool wider = sd_left > sd;
  const vf direct = splat(1 / (wider ? sd_left : sd)), scaled = splat(grown / (sd + sd_left) / sd / sd_left);
  const float* narrower = wider ? rows.centred : rows.left;
  for (int64_t i = 0; i < p.c; i += W)
    store_some(out + i, load(gain + i) * (load(rows.removed + i) * direct + load(narrower + i) * scaled), p.c - i);
}

template <typename T>
void forward(const LayerNormDifference& p) {
  const int64_t width = round_up(p.c, W);
  const int64_t threads = useful_threads(p.num_threads, p.n, 40 * p.a * p.n * p.c);
  float *gain, *rows_of_threads;
  const int64_t row = round_up(width, 16);  // each begins a cache line
  const Scratch scratch([&](Cutter& cutter) {
    gain = cutter.take(width);
    rows_of_threads = cutter.take(threads * 5 * row);
  });
  for (int64_t i = 0; i < width; ++i) gain[i] = 1;
  if (p.weight) widen_rows(static_cast<const T*>(p.weight), 1, p.c, gain, width);

#pragma omp parallel num_threads(threads)
  {
    float* own = rows_of_threads + thread_number() * 5 * row;
    const Rows rows{own, own + row, own + 2 * row, own + 3 * row, own + 4 * row};
#pragma omp for schedule(static)
    for (int64_t n = 0; n < p.n; ++n) {
      widen_rows(static_cast<const T*>(p.x) + n * p.c, 1, p.c, rows.x, width);
      for (int64_t i = 0; i < width; i += W) store(rows.centred + i, load(rows.x + i));
      if (p.centre) centre(rows.centred, nullptr, p.c);
      const float sd = sqrtf(mean_square(rows.centred, p.c) + p.eps);
      for (int64_t a = 0; a < p.a; ++a) {
        const int64_t at = (a * p.n + n) * p.c;
        widen_rows(static_cast<const T*>(p.removed) + at, 1, p.c, rows.removed, width);
        run_variant(p, rows, gain, sd, static_cast<T*>(p.out) + at);
      }
    }
  }
}

}  // namespace

void layer_norm_difference(const LayerNormDifference& p) {
  if (p.a == 0 || p.n == 0 || p.c == 0) return;
  if (p.dtype == Dtype::kBFloat16) {
    forward<uint16_t>(p);
  } else {
    forward<float>(p);
  }
}

}  // namespace icl::ICL_ISA
