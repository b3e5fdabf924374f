// linear_cross_entropy, forward and backward in one: where the gradients of the losses are known beforehand but for a
// factor, as a mean's are, the logits need not be computed twice.
//
// Those of a block of rows stay in the last-level cache, [V, rows]: V down, so that the weight and its gradient are read
// and written as they lie, and no sum goes across a vector. Of a group of words exp(logit - largest of the group) is
// kept, which becomes the gradient by one factor a group and row. Every sum has one owner and one order.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/gemm_unpacked.h"
#include "cpu/linear_cross_entropy_bfloat16.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "cpu/vector_math.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

// LinearCrossEntropyFwdBwd in float32
struct Arguments {
  float *losses, *grad_hidden, *grad_weight, *grad_bias;
  const float *hidden, *weight;
  const int64_t* targets;
  const float* bias;
  int64_t n, c, v, ignore_index;
  float grad_loss;
};

constexpr int64_t kLogits = 4 * 1024 * 1024 / 4;  // at a time
constexpr int64_t kGroup = 64;                    // words
constexpr int64_t kCut = 4 * W;                   // columns of grad_hidden at a time, at most

// Rows of a matrix that lie a power of two apart share few places of a cache: those that are ours lie `step` or `width`
// apart, a vector more than they hold.
struct Block {  // of rows
  int64_t first, rows;
  int64_t lanes;     // rows in whole vectors
  int64_t step, width;
  float* hidden;     // [lanes][width], rows that are ignored are 0
  float* hidden_t;   // [C][step]
  float* logits;     // [V][step], then exp(logit - largest of the group), then their gradient
  float* largest;    // [groups][step], then the factor that makes the last of the second
  float* sum;        // [groups][step]
  float* at_target;  // [step]
};

struct Words {
  int64_t group, first, count;
};

bool counts(const Arguments& p, const Block& block, int64_t row) {
  return row < block.rows && p.targets[block.first + row] != p.ignore_index;
}

// W rows of hidden, as they are and transposed.
void take_hidden(const Arguments& p, const Block& block, int64_t row) {
  for (int64_t r = row; r < row + W; ++r) {
    float* to = block.hidden + r * block.width;
    if (counts(p, block, r))
      std::memcpy(to, p.hidden + (block.first + r) * p.c, size_t(p.c) * sizeof(float));
    else
      std::memset(to, 0, size_t(p.c) * sizeof(float));
  }
  for (int64_t c = 0; c < p.c; c += W)
    transpose_block([&](int i) { return load(block.hidden + (row + i) * block.width + c); },
                    block.hidden_t + c * block.step + row, block.step);
}

// f(row of the block, its target among the words) for rows that have one there
template <typename F>
void at_targets(const Arguments& p, const Block& block, Words words, F f) {
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t target = p.targets[block.first + row] - words.first;
    if (target >= 0 && target < words.count && counts(p, block, row)) f(row, target);
  }
}

void forward(const Arguments& p, const Block& block, Words words) {
  float* logits = block.logits + words.first * block.step;
  float *largest = block.largest + words.group * block.step, *sum = block.sum + words.group * block.step;
  multiply(words.count, block.lanes, p.c, {p.weight + words.first * p.c, p.c, 1}, {block.hidden_t, block.step},
           {logits, block.step});
  for (int64_t i = 0; i < words.count; ++i)
    for (int64_t row = 0; row < block.lanes; row += W) {
      float* at = logits + i * block.step + row;
      if (p.bias) store(at, load(at) + splat(p.bias[words.first + i]));
      store(largest + row, i == 0 ? load(at) : max(load(largest + row), load(at)));
    }
  at_targets(p, block, words, [&](int64_t row, int64_t target) {
    block.at_target[row] = logits[target * block.step + row];
  });
  for (int64_t i = 0; i < words.count; ++i)
    for (int64_t row = 0; row < block.lanes; row += W) {
      float* at = logits + i * block.step + row;
      const vf top = load(largest + row);
      const vf term = exp(load(at) - (top == splat(-INFINITY) ? vf{} : top));  // -inf - -inf would be NaN
      store(at, term);
      store(sum + row, i == 0 ? term : load(sum + row) + term);
    }
}

// The groups' results of W rows: their losses, and the factors of their gradients.
void merge(const Arguments& p, const Block& block, int64_t groups, int64_t row) {
  vf peak = load(block.largest + row), total{}, gradient{};
  for (int64_t g = 1; g < groups; ++g) peak = max(peak, load(block.largest + g * block.step + row));
  for (int64_t g = 0; g < groups; ++g) {
    float* largest = block.largest + g * block.step + row;
    store(largest, exp(load(largest) - peak));
    total += load(block.sum + g * block.step + row) * load(largest);
  }
  for (int64_t i = 0; i < min(W, block.rows - row); ++i) {
    const bool in = counts(p, block, row + i);
    gradient[i] = in ? p.grad_loss : 0.0f;
    p.losses[block.first + row + i] = in ? logf(total[i]) - (block.at_target[row + i] - peak[i]) : 0.0f;
  }
  for (int64_t g = 0; g < groups; ++g) {
    float* factor = block.largest + g * block.step + row;
    store(factor, load(factor) * (gradient / total));
  }
}

// The gradients of a group's logits, and what they add to those of its weight and bias.
void backward(const Arguments& p, const Block& block, Words words) {
  float* gradients = block.logits + words.first * block.step;
  const float* factor = block.largest + words.group * block.step;
  for (int64_t i = 0; i < words.count; ++i)
    for (int64_t row = 0; row < block.lanes; row += W) {
      float* at = gradients + i * block.step + row;
      store(at, load(at) * load(factor + row));
    }
  // p - 1 at the target, without the cancellation when p is near 1
  at_targets(p, block, words, [&](int64_t row, int64_t target) {
    gradients[target * block.step + row] = expm1f(-p.losses[block.first + row]) * p.grad_loss;
  });
  multiply(words.count, p.c, block.lanes, {gradients, block.step, 1}, {block.hidden, block.width},
           {p.grad_weight + words.first * p.c, p.c}, block.first > 0);
  for (int64_t i = 0; p.grad_bias && i < words.count; ++i) {
    vf sum{};
    for (int64_t row = 0; row < block.lanes; row += W) sum += load(gradients + i * block.step + row);
    float& out = p.grad_bias[words.first + i];
    out = sum_of_lanes(sum) + (block.first > 0 ? out : 0.0f);
  }
}

// Some columns of grad_hidden, of some rows of the block.
void add_grad_hidden(const Arguments& p, const Block& block, int64_t row, int64_t rows, int64_t column, int64_t columns,
                     float* weight /* [kPiece][columns] */) {
  for (int64_t word = 0; word < p.v; word += kPiece) {
    const int64_t words = min(kPiece, p.v - word);
    for (int64_t i = 0; i < words; ++i)
      std::memcpy(weight + i * columns, p.weight + (word + i) * p.c + column, size_t(columns) * sizeof(float));
    multiply(rows, columns, words, {block.logits + word * block.step + row, 1, block.step}, {weight, columns},
             {p.grad_hidden + (block.first + row) * p.c + column, p.c}, word > 0);
  }
}

void in_float32(const Arguments& p, int num_threads) {
  const int64_t size = min(round_up(p.n, W), round_up(clamp(kLogits / p.v, 64, 1024), W));
  const int64_t groups = ceil_div(p.v, kGroup), vectors = p.c / W, cuts = max((vectors + 1) / 3, 1);
  const int64_t threads = useful_threads(num_threads, groups, 3 * p.n * p.c * p.v);
  Block all{};
  all.step = size + W;
  all.width = p.c + W;
  float* weights;
  const Scratch scratch([&](Cutter& cutter) {
    all.hidden = cutter.take(size * all.width);
    all.hidden_t = cutter.take(p.c * all.step);
    all.logits = cutter.take(p.v * all.step);
    all.largest = cutter.take(groups * all.step);
    all.sum = cutter.take(groups * all.step);
    all.at_target = cutter.take(all.step);
    weights = cutter.take(threads * kPiece * kCut);
  });
  const auto words = [&](int64_t group) {
    return Words{group, group * kGroup, min(kGroup, p.v - group * kGroup)};
  };
#pragma omp parallel num_threads(int(threads))
  {
    float* weight = weights + thread_number() * kPiece * kCut;
    for (int64_t first = 0; first < p.n; first += size) {
      Block block = all;
      block.first = first;
      block.rows = min(size, p.n - first);
      block.lanes = round_up(block.rows, W);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < block.lanes; row += W) take_hidden(p, block, row);
#pragma omp for schedule(dynamic)
      for (int64_t group = 0; group < groups; ++group) forward(p, block, words(group));
#pragma omp for schedule(static)
      for (int64_t row = 0; row < block.lanes; row += W) merge(p, block, groups, row);
#pragma omp for schedule(dynamic)
      for (int64_t group = 0; group < groups; ++group) backward(p, block, words(group));
      const int64_t parts = clamp(ceil_div(4 * threads, cuts), 1, ceil_div(block.rows, 64));
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < cuts * parts; ++task) {
        const int64_t cut = task / parts, part = task % parts;
        const int64_t row = block.rows * part / parts, column = vectors * cut / cuts * W;
        add_grad_hidden(p, block, row, block.rows * (part + 1) / parts - row, column,
                        vectors * (cut + 1) / cuts * W - column, weight);
      }
    }
  }
}

}  // namespace

void linear_cross_entropy_fwd_bwd(const LinearCrossEntropyFwdBwd& p) {
  if (p.dtype == Dtype::kBFloat16) return linear_cross_entropy_fwd_bwd_bfloat16(p, *bfloat16_tile());
  const auto in = [](const void* x) { return static_cast<const float*>(x); };
  const auto out = [](void* x) { return static_cast<float*>(x); };
  in_float32({p.losses, out(p.grad_hidden), out(p.grad_weight), out(p.grad_bias), in(p.hidden), in(p.weight), p.targets,
              in(p.bias), p.n, p.c, p.v, p.ignore_index, p.grad_loss},
             p.num_threads);
}

}  // namespace icl::ICL_ISA
