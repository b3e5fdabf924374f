// linear_cross_entropy's gradients on a tile kernel of bfloat16, in pieces that are tasks of threads: backward, and
// forward and backward in one, put them together.
//
// Logits are computed words down, [V, N]: the weight is read as it lies, and what is a row's lies along vectors. Their
// gradient is rounded to bfloat16, as torch's own is, and kept in two orders: as rows, `a` of grad_weight = g hidden,
// and in pairs of words, `b` of grad_hidden^T = weight^T g, so that none is transposed. Sums are of float32; each has
// one owner and one order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/bfloat16_pack.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/vector_math.h"
#include "ops.h"

namespace icl::ICL_ISA {

// What both directions have. bfloat16 but for losses and targets.
struct LinearCrossEntropyTensors {
  uint16_t* grad_hidden;   // [N, C] or null, and the next two
  uint16_t* grad_weight;   // [V, C]
  uint16_t* grad_bias;     // [V]
  const uint16_t* hidden;  // [N, C]
  const uint16_t* weight;  // [V, C]
  const uint16_t* bias;    // [V] or null
  const int64_t* targets;  // [N]
  int64_t n, c, v, ignore_index;
};

struct Range {
  int64_t first, count, padded;  // whole panels
};

ICL_INLINE Range range_of(int64_t i, int64_t step, int64_t all) {
  const int64_t count = min(step, all - i * step);
  return {i * step, count, round_up(count, kPanelColumns)};
}

class Bfloat16Gradients {
 public:
  static constexpr int64_t kBlockRows = 1024, kStripWords = 512;  // at most: the depths of the products
  static constexpr int64_t kGroupRows = 8 * kPanelColumns;        // whose logits are in the first-level cache
  static constexpr int64_t kProductRows = 96;                     // of a gradient that a panel is multiplied with

  const LinearCrossEntropyTensors& p;
  const Bfloat16Tile& kernel;
  const int64_t depth = padded_depth(p.c), width = round_up(p.c, kPanelColumns);
  const int64_t block_rows, all_rows = round_up(p.n, kPanelColumns);
  const int64_t blocks = ceil_div(p.n, block_rows), strips = ceil_div(p.v, kStripWords);
  const int64_t strip_words = min(kStripWords, round_up(p.v, kPanelColumns));
  const bool in_place = p.c == depth;

  // Of all rows, block after block
  uint16_t* rows;        // [lanes][depth]; what is ignored is 0
  uint16_t* panels;      // [lanes / 32][depth / 2][32][2]: rows as columns of b
  uint16_t* hidden;      // [width / 32][lanes / 2][32][2]: rows as rows of b
  float* grad_hidden_t;  // [C][lanes]
  // Of a strip
  uint16_t* weight;    // [words][depth], where it does not lie so
  uint16_t* weight_t;  // [C][words]
  uint16_t* pairs;     // [lanes / 32][words / 2][32][2]: of the gradients of logits, of a block

  Bfloat16Gradients(const LinearCrossEntropyTensors& tensors, const Bfloat16Tile& tile, int64_t most_rows = kBlockRows)
      : p(tensors), kernel(tile), block_rows(min(most_rows, round_up(tensors.n, kPanelColumns))) {}

  void take(Cutter& cutter) {
    const auto halves = [&](int64_t count) { return reinterpret_cast<uint16_t*>(cutter.take(ceil_div(count, 2))); };
    rows = halves(all_rows * depth);
    panels = halves(all_rows * depth);
    hidden = halves(p.grad_weight ? all_rows * width : 0);
    grad_hidden_t = cutter.take(p.grad_hidden ? all_rows * p.c : 0);
    weight = halves(in_place ? 0 : strip_words * depth);
    weight_t = halves(p.grad_hidden ? p.c * strip_words : 0);
    pairs = halves(p.grad_hidden ? block_rows * strip_words : 0);
  }

  Range block(int64_t i) const { return range_of(i, block_rows, p.n); }
  Range strip(int64_t i) const { return range_of(i, kStripWords, p.v); }
  bool counts(int64_t n) const { return n < p.n && p.targets[n] != p.ignore_index; }

  // By all threads: rows and columns of hidden.
  void take_hidden() const {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < all_rows / kPanelColumns; ++panel) take_rows(panel);
    const int64_t columns = width / kPanelColumns;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (p.grad_weight ? blocks * columns : 0); ++task)
      take_columns(block(task / columns), task % columns);
  }

  // By all threads: what a block's gradients of the logits of a strip add up to.
  void multiply(Range block, Range strip, const uint16_t* gradients /* [words][block.padded] */,
                float* grad_weight /* [words][width] */, float* grad_bias /* [words] */) const {
#pragma omp for schedule(dynamic) nowait
    for (int64_t word = 0; word < (p.grad_weight ? strip.count : 0); word += kProductRows)
      add_grad_weight(block, gradients + word * block.padded, min(kProductRows, strip.count - word),
                      grad_weight + word * width);
#pragma omp for schedule(static) nowait
    for (int64_t word = 0; word < (p.grad_bias ? strip.count : 0); ++word)
      grad_bias[word] = sum_of(gradients + word * block.padded, block.padded) + (block.first > 0 ? grad_bias[word] : 0);
    const int64_t row_panels = block.padded / kPanelColumns, cuts = ceil_div(p.c, kProductRows);
#pragma omp for schedule(dynamic) nowait
    for (int64_t task = 0; task < (p.grad_hidden ? row_panels * cuts : 0); ++task)
      add_grad_hidden(block, strip, task % cuts * kProductRows, task / cuts);
#pragma omp barrier
  }

  // By all threads: the gradients of a strip's words, and those of all rows.
  void write_words(Range strip, const float* grad_weight /* [words][width] */, const float* grad_bias) const {
#pragma omp for schedule(static)
    for (int64_t word = 0; word < strip.count; ++word) {
      const int64_t v = strip.first + word;
      if (p.grad_weight) narrow_row(grad_weight + word * width, p.grad_weight + v * p.c, p.c);
      if (p.grad_bias) p.grad_bias[v] = narrow(grad_bias[word]);
    }
  }

  void write_rows() const {
    const int64_t steps = block_rows / W;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (p.grad_hidden ? blocks * steps : 0); ++task)
      write_grad_hidden(block(task / steps), task % steps * W);
  }

  // A panel of rows.
  void take_rows(int64_t panel) const {
    const int64_t first = panel * kPanelColumns;
    for (int64_t r = first; r < first + kPanelColumns; ++r) {
      if (counts(r)) {
        narrow_row(p.hidden + r * p.c, p.c, rows + r * depth);
      } else {
        std::memset(rows + r * depth, 0, size_t(depth) * sizeof(uint16_t));
      }
    }
    pack_pairs(rows + first * depth, depth, kPanelColumns, depth, panels + first * depth);
  }

  // A panel of columns of a block of hidden, for grad_weight.
  void take_columns(Range block, int64_t panel) const {
    const int64_t column = panel * kPanelColumns;
    pack_rows(rows + block.first * depth + column, depth, block.padded, min(p.c - column, kPanelColumns),
              hidden + block.first * width + panel * block.padded * kPanelColumns);
  }

  // By all threads: the words of a strip, as they are multiplied with rows, or with gradients.
  void take_weight(Range strip, bool transposed) const {
    if (in_place && !transposed) return;
#pragma omp for schedule(static)
    for (int64_t word = 0; word < strip.padded; word += W) {
      if (!in_place && !transposed) take_words(strip, word);
      if (transposed && p.grad_hidden) transpose_words(strip, word);
    }
  }

  void take_words(Range strip, int64_t word) const {
    for (int64_t i = word; i < min(word + W, strip.count); ++i)
      narrow_row(p.weight + (strip.first + i) * p.c, p.c, weight + i * depth);
  }

  void transpose_words(Range strip, int64_t word) const {
    const auto row = [&](int64_t i) { return p.weight + (strip.first + word + i) * p.c; };
    const int64_t here = clamp(strip.count - word, 0, W);
    for (int64_t c = 0; c < p.c; c += W) {
      float block[W * W];
      transpose_block([&](int i) { return i < here ? load_some(row(i) + c, p.c - c) : vf{}; }, block, W);
      for (int64_t i = 0; i < min(W, p.c - c); ++i)
        store(weight_t + (c + i) * strip.padded + word, load(block + i * W));
    }
  }

  // Logits of words [word, word + count) of a strip, at most kMostTileRows, and of a group of rows: out [count][lanes].
  void logits(Range strip, int64_t word, int64_t count, int64_t first_row, int64_t lanes, float* out) const {
    const uint16_t* from = in_place ? p.weight + (strip.first + word) * p.c : weight + word * depth;
    kernel.multiply(from, depth, count, panels + first_row * depth, lanes / kPanelColumns, depth, out, lanes, false);
    for (int64_t r = 0; p.bias && r < count; ++r) {
      const vf bias = splat(widen(p.bias[strip.first + word + r]));
      for (int64_t j = 0; j < lanes; j += W) store(out + r * lanes + j, load(out + r * lanes + j) + bias);
    }
  }

  // What adds up in grad_weight: rows [word, word + count) of g against all hidden columns.
  void add_grad_weight(Range block, const uint16_t* gradients /* [count][lanes] */, int64_t count,
                       float* out /* [count][width] */) const {
    for (int64_t i = 0; i < width / kPanelColumns; ++i)
      kernel.multiply(gradients, block.padded, count,
                      hidden + block.first * width + i * block.padded * kPanelColumns, 1, block.padded,
                      out + i * kPanelColumns, width, block.first > 0);
  }

  // Columns [column, column + kProductRows) of grad_hidden, of a panel of the block's rows.
  void add_grad_hidden(Range block, Range strip, int64_t column, int64_t panel) const {
    kernel.multiply(weight_t + column * strip.padded, strip.padded, min(kProductRows, p.c - column),
                    pairs + panel * kPanelColumns * strip.padded, 1, strip.padded,
                    grad_hidden_t + block.first * p.c + column * block.padded + panel * kPanelColumns, block.padded,
                    strip.first > 0);
  }

  // Two words' gradients of W rows: as rows and in pairs.
  void keep(vf first, vf second, Range strip, int64_t word, int64_t row, uint16_t* first_row,
            uint16_t* second_row) const {
    const vu left = narrow(first), right = narrow(second);
    const half_vu16 halves[2] = {__builtin_convertvector(left, half_vu16), __builtin_convertvector(right, half_vu16)};
    std::memcpy(first_row + row, &halves[0], sizeof halves[0]);
    std::memcpy(second_row + row, &halves[1], sizeof halves[1]);
    if (!p.grad_hidden) return;
    const vu both = left | right << 16;
    std::memcpy(pair(strip, word, row), &both, sizeof both);
  }

  uint16_t* pair(Range strip, int64_t word, int64_t row) const {
    const int64_t panel = row / kPanelColumns, column = row % kPanelColumns;
    return pairs + ((panel * strip.padded + word / 2 * 2) * kPanelColumns) + 2 * column + word % 2;
  }

  // The gradients at the targets that are among these words, of these rows; value(n) is p - 1 times that of the loss.
  template <typename Value>
  void set_targets(Range block, Range strip, int64_t first_word, int64_t last_word, int64_t first_row, int64_t last_row,
                   uint16_t* gradients /* [words][block.padded] */, Value value) const {
    for (int64_t row = first_row; row < min(last_row, block.count); ++row) {
      const int64_t word = p.targets[block.first + row] - strip.first;
      if (word < first_word || word >= last_word || !counts(block.first + row)) continue;
      const uint16_t gradient = narrow(value(block.first + row));
      gradients[word * block.padded + row] = gradient;
      if (p.grad_hidden) *pair(strip, word, row) = gradient;
    }
  }

  static float sum_of(const uint16_t* gradients, int64_t lanes) {
    vf sum{};
    for (int64_t j = 0; j < lanes; j += W) sum += load(gradients + j);
    return sum_of_lanes(sum);
  }

  // W rows of grad_hidden, of a block.
  void write_grad_hidden(Range block, int64_t row) const {
    if (row >= block.count) return;
    const float* from = grad_hidden_t + block.first * p.c;
    for (int64_t c = 0; c < p.c; c += W) {
      float piece[W * W];
      transpose_block([&](int i) { return c + i < p.c ? load(from + (c + i) * block.padded + row) : vf{}; }, piece, W);
      for (int64_t r = row; r < min(row + W, block.count); ++r)
        store_some(p.grad_hidden + (block.first + r) * p.c + c, load(piece + (r - row) * W), p.c - c);
    }
  }
};

void linear_cross_entropy_bwd_bfloat16(const LinearCrossEntropyBwd& p, const Bfloat16Tile& kernel);
void linear_cross_entropy_fwd_bwd_bfloat16(const LinearCrossEntropyFwdBwd& p, const Bfloat16Tile& kernel);

}  // namespace icl::ICL_ISA
