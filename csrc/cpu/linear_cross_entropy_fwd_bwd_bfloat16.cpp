// linear_cross_entropy, forward and backward in one, on a tile kernel of bfloat16: blocks of rows and, within, strips
// of words. exp(logit - largest of a tile of words), rounded to bfloat16, waits for the sum of its row, and becomes the
// gradient by one factor a tile and row. With many words it waits in memory, and grad_weight is added up there: that
// takes less time than to compute logits again.
#include "cpu/linear_cross_entropy_bfloat16.h"
#include "cpu/threads.h"

namespace icl::ICL_ISA {
namespace {

using Arguments = LinearCrossEntropyFwdBwd;

constexpr int64_t kGroupRows = Bfloat16Gradients::kGroupRows;
constexpr int64_t kWaiting = 64 * 1024 * 1024 / 2;  // of bfloat16, at most

struct Sums {  // of a block
  float* largest;    // [tiles][rows], then the factor
  float* sum;        // [tiles][rows]
  float* at_target;  // [rows]
  int64_t tiles;     // of all words
};

struct Part {  // some tiles of words of a strip, and a group of rows of a block
  Range block, strip;
  int64_t begin, end;  // words of the strip, whole tiles
  int64_t tile;        // the first of them, among all
  int64_t row, lanes;
};

void forward(const Bfloat16Gradients& g, const Sums& sums, const Part& at, uint16_t* gradients) {
  alignas(64) float logits[kMostTileRows * kGroupRows];
  int64_t targets[kGroupRows], rows[kGroupRows], count = 0;  // those that are here
  for (int64_t row = at.row; row < min(at.row + at.lanes, at.block.count); ++row) {
    const int64_t word = g.p.targets[at.block.first + row] - at.strip.first;
    if (word >= at.begin && word < at.end) targets[count] = word, rows[count++] = row;
  }
  int64_t tile = at.tile;
  for (int64_t word = at.begin; word < at.end; word += g.kernel.rows, ++tile) {
    const int64_t here = clamp(at.strip.count - word, 0, min(g.kernel.rows, at.end - word));
    float* largest = sums.largest + tile * at.block.padded + at.row;
    float* sum = sums.sum + tile * at.block.padded + at.row;
    uint16_t* to = gradients + (at.strip.first + word) * at.block.padded + at.row;
    g.logits(at.strip, word, here, at.block.first + at.row, at.lanes, logits);
    for (int64_t j = 0; j < at.lanes; j += W) {
      vf top = splat(-INFINITY), total{};
      for (int64_t r = 0; r < here; ++r) top = max(top, load(logits + r * at.lanes + j));
      const vf reference = top == splat(-INFINITY) ? vf{} : top;  // -inf - -inf would be NaN
      for (int64_t r = 0; r < here; ++r) {
        const vf term = exp_nonpositive(load(logits + r * at.lanes + j) - reference);
        store(to + r * at.block.padded + j, term);
        total += term;
      }
      store(largest + j, top);
      store(sum + j, total);
    }
    for (int64_t i = 0; i < count; ++i)
      if (targets[i] >= word && targets[i] < word + here)
        sums.at_target[rows[i]] = logits[(targets[i] - word) * at.lanes + rows[i] - at.row];
  }
}

// The tiles' results of W rows: their losses, and the factors of their gradients.
void merge(const Arguments& p, const Bfloat16Gradients& g, const Sums& sums, Range block, int64_t row) {
  vf peak = splat(-INFINITY), total{}, gradient{};
  for (int64_t t = 0; t < sums.tiles; ++t) peak = max(peak, load(sums.largest + t * block.padded + row));
  for (int64_t t = 0; t < sums.tiles; ++t) {
    float* largest = sums.largest + t * block.padded + row;
    store(largest, exp(load(largest) - peak));
    total += load(sums.sum + t * block.padded + row) * load(largest);
  }
  for (int64_t i = 0; i < min(W, block.count - row); ++i) {
    const int64_t n = block.first + row + i;
    gradient[i] = g.counts(n) ? p.grad_loss : 0.0f;
    p.losses[n] = g.counts(n) ? logf(total[i]) - (sums.at_target[row + i] - peak[i]) : 0.0f;
  }
  for (int64_t t = 0; t < sums.tiles; ++t) {
    float* factor = sums.largest + t * block.padded + row;
    store(factor, load(factor) * (gradient / total));
  }
}

void backward(const Arguments& p, const Bfloat16Gradients& g, const Sums& sums, const Part& at, uint16_t* gradients) {
  uint16_t* strip = gradients + at.strip.first * at.block.padded;
  int64_t tile = at.tile;
  for (int64_t word = at.begin; word < at.end; word += g.kernel.rows, ++tile) {
    const int64_t words = min(g.kernel.rows, at.end - word), here = clamp(at.strip.count - word, 0, words);
    const float* factors = sums.largest + tile * at.block.padded;
    for (int64_t i = 0; i < words; i += 2)
      for (int64_t row = at.row; row < at.row + at.lanes; row += W) {
        uint16_t* to = strip + (word + i) * at.block.padded;
        const vf factor = load(factors + row);
        const auto gradient = [&](int64_t r) {
          return i + r < here ? load(to + r * at.block.padded + row) * factor : vf{};
        };
        g.keep(gradient(0), gradient(1), at.strip, word + i, row, to, to + at.block.padded);
      }
  }
  g.set_targets(at.block, at.strip, at.begin, at.end, at.row, at.row + at.lanes, strip,
                [&](int64_t n) { return expm1f(-p.losses[n]) * p.grad_loss; });
}

}  // namespace

void linear_cross_entropy_fwd_bwd_bfloat16(const LinearCrossEntropyFwdBwd& p, const Bfloat16Tile& kernel) {
  if (p.n == 0) return;
  const auto half = [](const void* x) { return static_cast<const uint16_t*>(x); };
  const auto out = [](void* x) { return static_cast<uint16_t*>(x); };
  const LinearCrossEntropyTensors tensors{out(p.grad_hidden), out(p.grad_weight), out(p.grad_bias), half(p.hidden),
                                          half(p.weight),     half(p.bias),       p.targets,        p.n,
                                          p.c,                p.v,                p.ignore_index};
  Bfloat16Gradients g(tensors, kernel, clamp(kWaiting / p.v / kGroupRows, 1, 4) * kGroupRows);
  const int64_t strip_tiles = ceil_div(g.strip_words, kernel.rows);
  Sums sums{nullptr, nullptr, nullptr, 0};
  for (int64_t s = 0; s < g.strips; ++s) sums.tiles += ceil_div(g.strip(s).padded, kernel.rows);
  uint16_t* gradients;
  float *grad_weight, *grad_bias;
  const Scratch scratch([&](Cutter& cutter) {
    g.take(cutter);
    sums.largest = cutter.take(sums.tiles * g.block_rows);
    sums.sum = cutter.take(sums.tiles * g.block_rows);
    sums.at_target = cutter.take(g.block_rows);
    gradients = reinterpret_cast<uint16_t*>(cutter.take(round_up(p.v, kPanelColumns) * g.block_rows / 2));
    grad_weight = cutter.take((g.blocks > 1 ? p.v : g.strip_words) * g.width);
    grad_bias = cutter.take(p.v);
  });
  const int threads = p.num_threads;
#pragma omp parallel num_threads(threads)
  {
    g.take_hidden();
    for (int64_t b = 0; b < g.blocks; ++b) {
      const Range block = g.block(b);
      const int64_t groups = ceil_div(block.padded, kGroupRows);
      // f(part) for all parts of a strip
      const auto in_parts = [&](int64_t s, auto f) {
        const Range strip = g.strip(s);
        const int64_t tiles = ceil_div(strip.padded, kernel.rows);
        const int64_t parts = clamp(ceil_div(4 * threads, groups), 1, ceil_div(tiles, 2));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < groups * parts; ++task) {
          const int64_t part = task % parts, begin = tiles * part / parts, row = task / parts * kGroupRows;
          f(Part{block, strip, begin * kernel.rows, min(tiles * (part + 1) / parts * kernel.rows, strip.padded),
                 s * strip_tiles + begin, row, min(block.padded - row, kGroupRows)});
        }
      };
      for (int64_t s = 0; s < g.strips; ++s) {
        g.take_weight(g.strip(s), false);
        in_parts(s, [&](const Part& at) { forward(g, sums, at, gradients); });
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < block.padded; row += W) merge(p, g, sums, block, row);
      for (int64_t s = 0; s < g.strips; ++s) {
        const Range strip = g.strip(s);
        g.take_weight(strip, true);
        in_parts(s, [&](const Part& at) { backward(p, g, sums, at, gradients); });
        float* words = grad_weight + (g.blocks > 1 ? strip.first * g.width : 0);
        g.multiply(block, strip, gradients + strip.first * block.padded, words, grad_bias + strip.first);
        if (b + 1 == g.blocks) g.write_words(strip, words, grad_bias + strip.first);
      }
    }
    g.write_rows();
  }
}

}  // namespace icl::ICL_ISA
