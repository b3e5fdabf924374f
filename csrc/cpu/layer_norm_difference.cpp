// layer_norm_difference: LN(x) - LN(x - d) for every variant d, for the instruction set in use.
//
// With xc, dc and lc the centred x, d and x - d, S the larger and y the row (xc or lc) of the smaller of the standard
// deviations sd and sd', it is gain (dc / S + y (var' - var) / ((sd + sd') sd sd')), var' - var = -mean(dc (xc + lc)).
// Neither term exceeds what d is beside S, so every rounding is relative to d, whether d is tiny, all of x, or far
// larger. A row is read from memory once and goes through several passes in the cache. Each is centred twice: the first
// mean is rounded at the size of the row, the second is of what it left. Without centring, as in an RMSNorm, xc, dc and
// lc are the rows as they are, and two passes are enough.
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
  float* centred;
  float* removed;  // centred too, in the end
  float* left;     // x - removed, centred in the end
  float* rest;     // what rounding took from it
};

// The sum of f(i), a vector (or several) of terms from i on, over C terms. In pieces: errors grow with the length of a
// piece more than with their number.
template <typename V, typename F>
ICL_INLINE V sum(int64_t c, F f) {
  constexpr int64_t kPiece = 32 * W;
  V total{};
  for (int64_t first = 0; first < c; first += kPiece) {
    const int64_t end = min(first + kPiece, c);
    V even{}, odd{};
    int64_t i = first;
    for (; i + W < end; i += 2 * W) {
      even += f(i);
      odd += f(i + W);
    }
    if (i < end) even += f(i);
    even += odd;
    total += even;
  }
  return total;
}

template <typename F>
ICL_INLINE float mean(int64_t c, F f) {
  const vf total = sum<vf>(c, f);
  float all = 0;  // lane after lane: sum_of_lanes() would change last bits
  for (int i = 0; i < W; ++i) all += total[i];
  return all / float(c);
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

// What dc and y are multiplied by, and which of the two rows y is.
struct Factors {
  bool wider;
  vf direct, scaled;

  Factors(float sd, float sd_left, float grown) : wider(sd_left > sd) {
    direct = splat(1 / (wider ? sd_left : sd));
    scaled = splat(grown / (sd + sd_left) / sd / sd_left);
  }
};

template <typename T>
void run_centred(const LayerNormDifference& p, const Rows& rows, const float* gain, float sd, const T* removed,
                 T* out) {
  widen_rows(removed, 1, p.c, rows.removed, round_up(p.c, W));
  subtract(rows, p.c);
  centre(rows.removed, nullptr, p.c);
  centre(rows.left, rows.rest, p.c);
  const float sd_left = sqrtf(mean_square(rows.left, p.c) + p.eps);
  const float grown = -mean(p.c, [&](int64_t i) {
    return load(rows.removed + i) * (load(rows.centred + i) + load(rows.left + i));
  });
  const Factors by(sd, sd_left, grown);
  const float* narrower = by.wider ? rows.centred : rows.left;
  for (int64_t i = 0; i < p.c; i += W) {
    const vf change = load(rows.removed + i) * by.direct + load(narrower + i) * by.scaled;
    store_some(out + i, load(gain + i) * change, p.c - i);
  }
}

struct TwoSums {
  vf left{}, grown{};

  ICL_INLINE TwoSums& operator+=(const TwoSums& other) {
    left += other.left;
    grown += other.grown;
    return *this;
  }
};

template <typename T>
void run_uncentred(const LayerNormDifference& p, const float* x, const float* gain, float sd, const T* removed,
                   T* out) {
  const TwoSums sums = sum<TwoSums>(p.c, [=, &p](int64_t i) {
    const vf d = load_some(removed + i, p.c - i), left = load(x + i) - d;
    return TwoSums{left * left, d * (load(x + i) + left)};
  });
  const float sd_left = sqrtf(sum_of_lanes(sums.left) / float(p.c) + p.eps);
  const Factors by(sd, sd_left, -sum_of_lanes(sums.grown) / float(p.c));
  for (int64_t i = 0; i < p.c; i += W) {
    const vf d = load_some(removed + i, p.c - i), y = by.wider ? load(x + i) : load(x + i) - d;
    store_some(out + i, load(gain + i) * (d * by.direct + y * by.scaled), p.c - i);
  }
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
        const T* removed = static_cast<const T*>(p.removed) + at;
        T* out = static_cast<T*>(p.out) + at;
        p.centre ? run_centred(p, rows, gain, sd, removed, out) : run_uncentred(p, rows.x, gain, sd, removed, out);
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
