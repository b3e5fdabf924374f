// linear_cross_entropy backward on a tile kernel of bfloat16: strips of words and, within, blocks of rows, so that the
// weight and its gradient go through the caches once. Logits are computed again.
#include "cpu/linear_cross_entropy_bfloat16.h"
#include "cpu/threads.h"

namespace icl::ICL_ISA {
namespace {

struct Rows {  // what they lend their gradients
  float* peak;     // [N in whole panels], and so the others
  float* log_sum;  // infinite where a row is ignored: its probabilities are 0
  float* grad;
};

void take_row(const LinearCrossEntropyBwd& p, const Bfloat16Gradients& g, const Rows& of, int64_t n) {
  const bool counts = g.counts(n);
  of.peak[n] = counts ? p.peak[n] : 0.0f;
  of.log_sum[n] = counts ? p.log_sum[n] : INFINITY;
  of.grad[n] = counts ? p.grad_losses[n] : 0.0f;
}

// Of the words [begin, end) of a strip and a group of a block's rows.
void differentiate(const LinearCrossEntropyBwd& p, const Bfloat16Gradients& g, const Rows& of, Range block, Range strip,
                   int64_t group, int64_t begin, int64_t end, uint16_t* gradients /* [words][block.padded] */) {
  alignas(64) float logits[kMostTileRows * Bfloat16Gradients::kGroupRows];
  const int64_t row = group * Bfloat16Gradients::kGroupRows;
  const int64_t lanes = min(block.padded - row, Bfloat16Gradients::kGroupRows), first = block.first + row;
  for (int64_t word = begin; word < end; word += g.kernel.rows) {
    const int64_t words = min(g.kernel.rows, end - word), here = clamp(strip.count - word, 0, words);
    g.logits(strip, word, here, first, lanes, logits);
    for (int64_t i = 0; i < words; i += 2)
      for (int64_t j = 0; j < lanes; j += W) {
        const vf peak = load(of.peak + first + j), log_sum = load(of.log_sum + first + j);
        const vf grad = load(of.grad + first + j);
        const auto gradient = [&](int64_t r) {
          return r < here ? exp_nonpositive(load(logits + r * lanes + j) - peak - log_sum) * grad : vf{};
        };
        uint16_t* to = gradients + (word + i) * block.padded;
        g.keep(gradient(i), gradient(i + 1), strip, word + i, row + j, to, to + block.padded);
      }
  }
  g.set_targets(block, strip, begin, end, row, row + lanes, gradients,
                [&](int64_t n) { return expm1f(-p.losses[n]) * p.grad_losses[n]; });
}

}  // namespace

void linear_cross_entropy_bwd_bfloat16(const LinearCrossEntropyBwd& p, const Bfloat16Tile& kernel) {
  const auto half = [](const void* x) { return static_cast<const uint16_t*>(x); };
  const auto out = [](void* x) { return static_cast<uint16_t*>(x); };
  const LinearCrossEntropyTensors tensors{out(p.grad_hidden), out(p.grad_weight), out(p.grad_bias), half(p.hidden),
                                          half(p.weight),     half(p.bias),       p.targets,        p.n,
                                          p.c,                p.v,                p.ignore_index};
  Bfloat16Gradients g(tensors, kernel);
  Rows of{};
  uint16_t* gradients;
  float *grad_weight, *grad_bias;
  const Scratch scratch([&](Cutter& cutter) {
    g.take(cutter);
    of = {cutter.take(g.all_rows), cutter.take(g.all_rows), cutter.take(g.all_rows)};
    gradients = reinterpret_cast<uint16_t*>(cutter.take(g.strip_words * g.block_rows / 2));
    grad_weight = cutter.take(p.grad_weight ? g.strip_words * g.width : 0);
    grad_bias = cutter.take(g.strip_words);
  });
  const int threads = p.num_threads;
#pragma omp parallel num_threads(threads)
  {
    g.take_hidden();
#pragma omp for schedule(static)
    for (int64_t n = 0; n < g.all_rows; ++n) take_row(p, g, of, n);
    for (int64_t s = 0; s < g.strips; ++s) {
      const Range strip = g.strip(s);
      g.take_weight(strip, false);
      g.take_weight(strip, true);
      const int64_t tiles = ceil_div(strip.padded, kernel.rows);
      for (int64_t b = 0; b < g.blocks; ++b) {
        const Range block = g.block(b);
        const int64_t groups = ceil_div(block.padded, Bfloat16Gradients::kGroupRows);
        const int64_t parts = clamp(ceil_div(4 * threads, groups), 1, ceil_div(tiles, 2));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < groups * parts; ++task) {
          const int64_t part = task % parts, begin = tiles * part / parts * kernel.rows;
          differentiate(p, g, of, block, strip, task / parts, begin,
                        min(tiles * (part + 1) / parts * kernel.rows, strip.padded), gradients);
        }
        g.multiply(block, strip, gradients, grad_weight, grad_bias);
      }
      g.write_words(strip, grad_weight, grad_bias);
    }
    g.write_rows();
  }
}

}  // namespace icl::ICL_ISA
