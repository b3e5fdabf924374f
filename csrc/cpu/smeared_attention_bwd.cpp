// smeared_attention, backward. One unit of work is one head of one example: its strips of query rows run over chunks of
// keys; the weights are recomputed from the peak and the log of the sum of their row. Gradients of keys and values are
// summed over the strips in memory of the thread, in an order that does not depend on the number of threads.
#include "cpu/attention_forward.h"
#include "cpu/bfloat16_tile.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {

void smeared_attention_bwd_bfloat16(const SmearedAttentionBwd& p, const Bfloat16Tile& tile);

namespace {

constexpr int64_t kChunk = 128;

// Memory of one thread; ld is the depth rounded up to W.
struct BackwardWorkspace {
  float *keys, *values;            // [T, ld], smeared keys; values
  float *grad_keys, *grad_values;  // [T, ld]
  float *queries, *grads;          // [kRows, ld]: scaled queries, gradients of the output
  float *grad_queries;             // [kRows, ld]
  float *q, *g, *o;                // [depth, kRows]: the same and the output, transposed
  float *weights, *grad_scores;    // [chunk, kRows]

  void cut(Cutter& cutter, int64_t length, int64_t depth, int64_t chunk) {
    const int64_t ld = round_up(depth, W);
    keys = cutter.take(length * ld), values = cutter.take(length * ld);
    grad_keys = cutter.take(length * ld), grad_values = cutter.take(length * ld);
    queries = cutter.take(kRows * ld), grads = cutter.take(kRows * ld), grad_queries = cutter.take(kRows * ld);
    q = cutter.take(depth * kRows), g = cutter.take(depth * kRows), o = cutter.take(depth * kRows);
    weights = cutter.take(chunk * kRows), grad_scores = cutter.take(chunk * kRows);
  }
};

// weights: scores -> exp(score - peak - log_sum); grad_scores: gradients of the weights -> of the scores
void differentiate(const Strip& strip, int32_t begin, int32_t end,
                   const float* peak, const float* log_sum, const float* mean_grad,  // [kRows]
                   float* weights, float* grad_scores) {                             // [end - begin, kRows]
  for (int v = 0; v < kVectors; ++v) {
    const int32_t from = min(max(begin, strip.some_begin[v]), end);
    const int32_t to = max(min(end, strip.some_end[v]), from);
    const vf largest = load(peak + v * W), log_total = load(log_sum + v * W), mean = load(mean_grad + v * W);
    for (int32_t j = begin; j < end; ++j) {
      float* weight = weights + (j - begin) * kRows + v * W;
      float* grad = grad_scores + (j - begin) * kRows + v * W;
      if (j < from || j >= to) {
        store(weight, vf{}), store(grad, vf{});
        continue;
      }
      // the score less the peak is exact where it matters; rounding could leave it above 0 by an ulp, which is harmless
      vf p = exp_nonpositive((load(weight) - largest) - log_total);
      vf ds = p * (load(grad) - mean);
      if (j < strip.every_begin[v] || j >= strip.every_end[v])
        p = if_seen(strip, v, j, p, vf{}), ds = if_seen(strip, v, j, ds, vf{});
      store(weight, p), store(grad, ds);
    }
  }
}

template <typename T>
void backward_head(const SmearedAttentionBwd& p, int64_t head, int64_t chunk, const BackwardWorkspace& work) {
  const SmearedAttentionFwd& f = p.forward;
  const int64_t h = head % f.heads, window = f.window ? f.window[h] : 0, depth = f.depth, ld = round_up(depth, W);
  const int64_t first = head * f.length * depth;
  const int32_t length = int32_t(f.length);
  const Keys<T> keys{(const T*)f.k + first, depth, true, f.gate[h]};
  keys.mix(0, length, work.keys, ld);
  const float* values = work.values;
  int64_t values_ld = ld;
  if constexpr (sizeof(T) == 4)
    values = (const float*)f.v + first, values_ld = depth;
  else
    widen_rows((const T*)f.v + first, length, depth, work.values, ld);
  for (int64_t i = 0; i < length * ld; ++i) work.grad_keys[i] = work.grad_values[i] = 0;
  static_assert(kChunk >= kRows);
  float ones[kChunk], scales[kRows], peak[kRows], log_sum[kRows], mean_grad[kRows];
  for (int r = 0; r < kChunk; ++r) ones[r] = 1;
  for (int r = 0; r < kRows; ++r) scales[r] = f.scale;

  for (int32_t row = 0; row < length; row += kRows) {
    const int64_t at = first + row * depth;
    Strip strip;
    strip.rows = min(kRows, length - row);
    for (int r = 0; r < strip.rows; ++r) strip.see(r, row + r, window);
    strip.finish();
    widen_rows((const T*)f.q + at, strip.rows, depth, work.queries, ld);
    widen_rows((const T*)p.grad_out + at, strip.rows, depth, work.grads, ld);
    for (int64_t i = 0; i < strip.rows * ld; ++i) work.queries[i] *= f.scale;
    transpose(work.queries, strip.rows, depth, ld, 1.0f, work.q);
    transpose(work.grads, strip.rows, depth, ld, 1.0f, work.g);
    transpose((const T*)f.out + at, strip.rows, depth, depth, 1.0f, work.o);
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = head * f.length + row + r;
      peak[r] = r < strip.rows ? f.peak[i] : 0, log_sum[r] = r < strip.rows ? f.log_sum[i] : 0;
    }
    // summed as score_tile sums the gradients of the weights, so that a row that sees one key has gradients of exactly 0
    for (int v = 0; v < kVectors; ++v) {
      vf mean{};
      for (int64_t begin = 0; begin < depth; begin += kScorePiece) {
        vf piece{};
        for (int64_t d = begin; d < min(depth, begin + kScorePiece); ++d)
          piece = fused(load(work.g + d * kRows + v * W), load(work.o + d * kRows + v * W), piece);
        mean += piece;
      }
      store(mean_grad + v * W, mean);
    }
    for (int32_t begin = strip.begin; begin < strip.end; begin += int32_t(chunk)) {
      const int32_t end = min(strip.end, begin + int32_t(chunk));
      score_chunk(strip, work.q, work.keys + begin * ld, depth, ld, begin, end, work.weights);
      score_chunk(strip, work.g, values + begin * values_ld, depth, values_ld, begin, end, work.grad_scores);
      differentiate(strip, begin, end, peak, log_sum, mean_grad, work.weights, work.grad_scores);
      auto keys_of_rows = [&](int r, int n, int64_t* from, int64_t* to) { strip.band(r, n, begin, end, from, to); };
      auto rows_of_keys = [&](int j, int n, int64_t* from, int64_t* to) {
        const int32_t key = begin + j;
        *from = max(0, key - row);
        *to = window > 0 && key + n - 1 + window - row < strip.rows ? key + n - 1 + window - row : strip.rows;
        if (*to < *from) *to = *from;
      };
      product<true>(strip.rows, ld, work.grad_scores, kRows, work.keys + begin * ld, ld, work.grad_queries, ld,
                    begin == strip.begin ? nullptr : ones, end == strip.end ? scales : nullptr, keys_of_rows);
      product<false>(end - begin, ld, work.weights, kRows, work.grads, ld, work.grad_values + begin * ld, ld, ones,
                     nullptr, rows_of_keys);
      product<false>(end - begin, ld, work.grad_scores, kRows, work.queries, ld, work.grad_keys + begin * ld, ld, ones,
                     nullptr, rows_of_keys);
    }
    for (int r = 0; r < strip.rows; ++r)
      narrow_row(work.grad_queries + r * ld, (T*)p.grad_q + at + r * depth, depth);
  }

  const float gate = f.gate[h], rest = 1 - gate;
  double grad_gate = 0;
  for (int32_t j = 0; j < length; ++j) {
    float* mine = work.grad_keys + j * ld;
    const T* key = (const T*)f.k + first + j * depth;
    const float own = j == 0 ? 1 : gate, next = j + 1 < length ? rest : 0;
    const float* after = j + 1 < length ? mine + ld : mine;
    double sum = 0;
    if (j > 0)
      for (int64_t d = 0; d < depth; ++d)
        sum += double(mine[d]) * (double(widen(key[d])) - double(widen(key[d - depth])));
    grad_gate += sum;
    for (int64_t d = 0; d < depth; ++d) mine[d] = own * mine[d] + next * after[d];
    narrow_row(mine, (T*)p.grad_k + first + j * depth, depth);
    narrow_row(work.grad_values + j * ld, (T*)p.grad_v + first + j * depth, depth);
  }
  p.grad_gate[head] = grad_gate;
}

}  // namespace

void smeared_attention_bwd(const SmearedAttentionBwd& p) {
  const SmearedAttentionFwd& f = p.forward;
  const int64_t units = f.batch * f.heads;
  if (units * f.length * f.depth == 0) {
    for (int64_t i = 0; i < units; ++i) p.grad_gate[i] = 0;
    return;
  }
  if (f.dtype == Dtype::kBFloat16)
    if (const Bfloat16Tile* tile = bfloat16_tile()) return smeared_attention_bwd_bfloat16(p, *tile);
  const int64_t chunk = min(f.length, kChunk);
  const int64_t threads = useful_threads(f.num_threads, units, units * f.length * f.length * f.depth);
  float* memory = nullptr;
  Cutter measure{nullptr};
  BackwardWorkspace{}.cut(measure, f.length, f.depth, chunk);
  const int64_t floats = measure.used;
  const Scratch scratch([&](Cutter& cutter) { memory = cutter.take(threads * floats); });
#pragma omp parallel num_threads(int(threads))
  {
    BackwardWorkspace work;
    Cutter cutter{memory + thread_number() * floats};
    work.cut(cutter, f.length, f.depth, chunk);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) {
      const auto run = f.dtype == Dtype::kBFloat16 ? backward_head<uint16_t> : backward_head<float>;
      run(p, unit, chunk, work);
    }
  }
}

}  // namespace icl::ICL_ISA
