// smeared_attention, backward, with products of bfloat16 on a tile kernel. One unit of work is one head of one
// example, whose strips of query rows run over all keys they see. The gradients of keys and values are summed with the
// keys along the lanes, [depth, keys]: so both factors of the sums over rows are at hand, one transposed once a strip
// and the other with its rows in pairs.
#include "cpu/attention_bfloat16.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kStripRows = kMostStripRows;

// Memory of one thread; keys are padded to whole panels.
struct BackwardTiles {
  uint16_t *keys, *values;                // panels of keys and of values, pairs over the depth
  uint16_t* key_columns;                  // panels of the keys' columns, pairs over the keys
  float* rows;                            // [T, depth]: gradients of the values, then of the keys
  float *grad_keys, *grad_values;         // [depth, T]
  uint16_t *queries, *grads;              // [kStripRows, padded depth]
  uint16_t *queries_t, *grads_t;          // [depth, kStripRows]
  float *scores, *grad_weights;           // [kStripRows, row_step], and room for a score before them
  float *row, *grad_row;                  // [row_step]: weights and gradients of the scores of one row
  uint16_t *weights, *grad_scores;        // [kStripRows, row_step], rounded
  uint16_t* pairs;                        // panels of keys of either, pairs over the rows
  float* block;                           // [kStripRows, kPanelColumns]

  void cut(Cutter& cutter, int64_t length, int64_t depth) {
    const int64_t padded = padded_depth(depth), all = round_up(length, kPanelColumns), step = row_step(length);
    keys = take_bfloat16(cutter, all * padded), values = take_bfloat16(cutter, all * padded);
    key_columns = take_bfloat16(cutter, all * round_up(depth, kPanelColumns)), rows = cutter.take(length * depth);
    grad_keys = cutter.take(depth * step), grad_values = cutter.take(depth * step);
    for (uint16_t** piece : {&queries, &grads}) *piece = take_bfloat16(cutter, kStripRows * padded);
    for (uint16_t** piece : {&queries_t, &grads_t}) *piece = take_bfloat16(cutter, depth * kStripRows);
    for (float** piece : {&scores, &grad_weights})
      *piece = cutter.take(kPanelColumns + kStripRows * step) + kPanelColumns;
    row = cutter.take(step), grad_row = cutter.take(step);
    for (uint16_t** piece : {&weights, &grad_scores}) *piece = take_bfloat16(cutter, kStripRows * step);
    pairs = take_bfloat16(cutter, kStripRows * all);
    block = cutter.take(kStripRows * kPanelColumns);
  }
};

// rows [count, depth] -> [depth, kStripRows], 0 in the unused columns
void transpose_strip(const uint16_t* rows, int64_t count, int64_t depth, uint16_t* to) {
  for (int64_t r = 0; r < kStripRows; r += W)
    for (int64_t d = 0; d < depth; d += W) {
      vf block[W];
      for (int64_t i = 0; i < W; ++i)
        block[i] = r + i < count ? load_some(rows + (r + i) * depth + d, depth - d) : vf{};
      transpose(block);
      for (int64_t i = 0; i < W && d + i < depth; ++i) store(to + (d + i) * kStripRows + r, block[i]);
    }
}

// A row of a strip, of the keys begin..end-1.
struct Row {
  int32_t begin, end, first, last;  // seen: first..last
  float scale, gate, peak, log_sum;

  // Returns the gradient of the gate. The mean of the weights' gradients is summed from them: where a row sees one key
  // it is that key's, and nothing is left.
  float differentiate(const float* scores,  // [end - begin], and the one before
                      float* grad_weights,  // [end - begin]; 0 from now on where a key is not seen
                      uint16_t* weights,    // [end - begin], rounded
                      float* row, float* grad_row) const {  // [end - begin] weights, gradients of the mixed scores
    const vi lanes = lane_numbers(std::make_integer_sequence<int, W>());
    const Smear smear = Smear::of(gate, scale);
    vf sums{}, grad_gate{};
    for (int32_t j = 0; j < end - begin; j += W) {
      vf weight = exp_nonpositive((mixed_scores<true>(scores + j, smear) - splat(peak)) - splat(log_sum));
      vf grad = load(grad_weights + j);
      if (begin + j < first || begin + j + W - 1 > last) {
        const vi key = lanes + (begin + j), seen = (key >= first) & (key <= last);
        weight = seen ? weight : vf{}, grad = seen ? grad : vf{};
        store(grad_weights + j, grad);
      }
      sums += weight * grad;
      store(row + j, weight);
    }
    for (int32_t j = 0; j < end - begin; j += 2 * W)
      store_rounded(weights + j, rounded(load(row + j)), rounded(load(row + j + W)));
    const vf mean = splat(sum_of_lanes(sums));
    for (int32_t j = 0; j < end - begin; j += W) {
      const vf grad = load(row + j) * (load(grad_weights + j) - mean) * splat(scale);
      grad_gate += grad * (load(scores + j) - load(scores + j - 1));
      store(grad_row + j, grad);
    }
    return sum_of_lanes(grad_gate);
  }
};

// Gradients of mixed scores -> of those of the keys themselves, each of which is in two of them
void unmix(float gate, bool from_key_0, int32_t count,
           const float* mixed,  // [count], and one after it
           uint16_t* scores) {  // [count], rounded
  const auto at = [&](int32_t j) {
    return rounded(load(mixed + j) * splat(gate) + load(mixed + j + 1) * splat(1 - gate));
  };
  for (int32_t j = 0; j < count; j += 2 * W) store_rounded(scores + j, at(j), at(j + W));
  if (from_key_0) scores[0] = narrow(mixed[0] + mixed[1] * (1 - gate));
}

struct Backward {
  const SmearedAttentionBwd& p;
  const Bfloat16Tile& tile;
  const SmearedAttentionFwd& f = p.forward;
  const int64_t depth = f.depth, padded = padded_depth(depth), step = row_step(f.length);
  const int32_t length = int32_t(f.length);

  const uint16_t* at(const void* tensor, int64_t head, int64_t row) const {
    return (const uint16_t*)tensor + (head * length + row) * depth;
  }

  void head(int64_t head, BackwardTiles& work) const {
    pack_keys(at(f.k, head, 0), length, depth, work.keys);
    pack_keys(at(f.v, head, 0), length, depth, work.values);
    pack_values(at(f.k, head, 0), length, depth, work.key_columns);
    for (int64_t i = 0; i < depth * step; ++i) work.grad_keys[i] = work.grad_values[i] = 0;
    double grad_gate = 0;
    for (int32_t row = 0; row < length; row += kStripRows) grad_gate += strip(head, row, work);
    p.grad_gate[head] = grad_gate;
    for (const auto& [sums, out] : {Sums{work.grad_values, p.grad_v}, Sums{work.grad_keys, p.grad_k}}) {
      transpose(sums, step, depth, length, work.rows, depth);
      narrow_row(work.rows, (uint16_t*)at(out, head, 0), length * depth);
    }
  }

 private:
  struct Sums {
    const float* sums;
    void* out;
  };

  double strip(int64_t head, int32_t row, BackwardTiles& work) const {
    const float gate = f.gate[head % f.heads];
    TileStrip strip;
    strip.rows = int(min(kStripRows, length - row));
    for (int r = 0; r < strip.rows; ++r) {
      strip.see(r, row + r, f.window ? f.window[head % f.heads] : 0);
      narrow_row(at(f.q, head, row + r), depth, work.queries + r * padded);
      narrow_row(at(p.grad_out, head, row + r), depth, work.grads + r * padded);
    }
    strip.finish();
    const int32_t begin = strip.begin, end = strip.end, first = first_key<true>(strip), before = begin - first;
    const float* scores = score_strip<true>(tile, strip, work.queries, work.keys, depth, work.scores, step);
    score_strip<false>(tile, strip, work.grads, work.values, depth, work.grad_weights, step);
    double grad_gate = 0;
    for (int32_t j = 0; j < before; ++j) work.grad_row[j] = 0;
    work.grad_row[end - first] = 0;
    for (int r = 0; r < strip.rows; ++r) {
      const int64_t i = head * length + row + r, from = r * step;
      const Row of{begin, end, strip.first[r], strip.last[r], f.scale, gate, f.peak[i], f.log_sum[i]};
      grad_gate += of.differentiate(scores + from, work.grad_weights + from, work.weights + from, work.row,
                                    work.grad_row + before);
      unmix(gate, first == 0, end - first, work.grad_row, work.grad_scores + from);
    }
    transpose_strip(at(p.grad_out, head, row), strip.rows, depth, work.grads_t);
    transpose_strip(at(f.q, head, row), strip.rows, depth, work.queries_t);
    add_over_rows(strip.rows, begin, end, work.grads_t, work.weights, work.pairs, work.grad_values);
    add_over_rows(strip.rows, first, end, work.queries_t, work.grad_scores, work.pairs, work.grad_keys);
    for (int64_t c = 0; c < depth; c += kPanelColumns) {
      const uint16_t* columns = work.key_columns + c * round_up(length, kPanelColumns) + first * kPanelColumns;
      tile.multiply(work.grad_scores, step, strip.rows, columns, 1, end - first, work.block, kPanelColumns, false);
      for (int r = 0; r < strip.rows; ++r)
        narrow_row(work.block + r * kPanelColumns, (uint16_t*)at(p.grad_q, head, row + r) + c,
                   min(depth - c, kPanelColumns));
    }
    return grad_gate;
  }

  // sums [depth, step] += columns [depth, kStripRows] @ the rows [rows, step] of keys begin..end-1
  void add_over_rows(int rows, int32_t begin, int32_t end, const uint16_t* columns, const uint16_t* of_keys,
                     uint16_t* pairs, float* sums) const {
    const int64_t padded_rows = padded_depth(rows);
    for (int32_t j = 0; j < end - begin; j += kPanelColumns)
      pack_rows(of_keys + j, step, rows, kPanelColumns, pairs + j * padded_rows);
    tile.multiply(columns, kStripRows, depth, pairs, (end - begin) / kPanelColumns, padded_rows, sums + begin, step,
                  true);
  }
};

}  // namespace

void smeared_attention_bwd_bfloat16(const SmearedAttentionBwd& p, const Bfloat16Tile& tile) {
  const SmearedAttentionFwd& f = p.forward;
  const int64_t units = f.batch * f.heads;
  const int64_t threads = useful_threads(f.num_threads, units, units * f.length * f.length * f.depth);
  const Backward backward{p, tile};
  Cutter measure{nullptr};
  BackwardTiles{}.cut(measure, f.length, f.depth);
  const int64_t floats = measure.used;
  float* memory = nullptr;
  const Scratch scratch([&](Cutter& cutter) { memory = cutter.take(threads * floats); });
#pragma omp parallel num_threads(int(threads))
  {
    BackwardTiles work;
    Cutter cutter{memory + thread_number() * floats};
    work.cut(cutter, f.length, f.depth);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) backward.head(unit, work);
  }
}

}  // namespace icl::ICL_ISA
