// smeared_attention, backward. One unit of work is one head of one example: its strips of query rows run over chunks of
// keys; the weights are recomputed from the peak and the log of the sum of their row. Gradients of keys and values are
// summed over the strips in memory of the thread, in an order that does not depend on the number of threads.
#include "cpu/attention_forward.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t CHUNK = 128;

// Memory of one thread; ld is the padded depth.
struct BackwardRoom {
  float *keys, *values;            // [T, ld], smeared keys; values
  float *grad_keys, *grad_values;  // [T, ld]
  float *queries, *grads;          // [ROWS, ld]: scaled queries, gradients of the output
  float *grad_queries;             // [ROWS, ld]
  float *q, *g, *o;                // [depth, ROWS]: the same and the output, transposed
  float *weights, *grad_scores;    // [chunk, ROWS]

  void cut(Cutter& cutter, int64_t length, int64_t depth, int64_t chunk) {
    const int64_t ld = padded(depth);
    keys = cutter.take(length * ld), values = cutter.take(length * ld);
    grad_keys = cutter.take(length * ld), grad_values = cutter.take(length * ld);
    queries = cutter.take(ROWS * ld), grads = cutter.take(ROWS * ld), grad_queries = cutter.take(ROWS * ld);
    q = cutter.take(depth * ROWS), g = cutter.take(depth * ROWS), o = cutter.take(depth * ROWS);
    weights = cutter.take(chunk * ROWS), grad_scores = cutter.take(chunk * ROWS);
  }
};

// weights: scores -> exp(score - peak - log_sum); grad_scores: gradients of the weights -> of the scores
void differentiate(const Strip& strip, int32_t begin, int32_t end,
                   const float* peak, const float* log_sum, const float* mean_grad,  // [ROWS]
                   float* weights, float* grad_scores) {                             // [end - begin, ROWS]
  for (int v = 0; v < VECS; ++v) {
    const int32_t from = lesser(greater(begin, strip.some_begin[v]), end);
    const int32_t to = greater(lesser(end, strip.some_end[v]), from);
    const vf largest = load(peak + v * W), log_total = load(log_sum + v * W), mean = load(mean_grad + v * W);
    for (int32_t j = begin; j < end; ++j) {
      float* weight = weights + (j - begin) * ROWS + v * W;
      float* grad = grad_scores + (j - begin) * ROWS + v * W;
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
void backward_head(const SmearedAttentionBwd& p, int64_t head, int64_t chunk, const BackwardRoom& room) {
  const SmearedAttentionFwd& f = p.forward;
  const int64_t h = head % f.heads, window = f.window ? f.window[h] : 0, depth = f.depth, ld = padded(depth);
  const int64_t first = head * f.length * depth;
  const int32_t length = int32_t(f.length);
  const Keys<T> keys{(const T*)f.k + first, depth, true, f.gate[h]};
  keys.mix(0, length, room.keys, ld);
  const float* values = room.values;
  int64_t values_ld = ld;
  if constexpr (sizeof(T) == 4)
    values = (const float*)f.v + first, values_ld = depth;
  else
    widen_rows((const T*)f.v + first, length, depth, room.values, ld);
  for (int64_t i = 0; i < length * ld; ++i) room.grad_keys[i] = room.grad_values[i] = 0;
  static_assert(CHUNK >= ROWS);
  float ones[CHUNK], scales[ROWS], peak[ROWS], log_sum[ROWS], mean_grad[ROWS];
  for (int r = 0; r < CHUNK; ++r) ones[r] = 1;
  for (int r = 0; r < ROWS; ++r) scales[r] = f.scale;

  for (int32_t row = 0; row < length; row += ROWS) {
    const int64_t at = first + row * depth;
    Strip strip;
    strip.rows = lesser(ROWS, length - row);
    for (int r = 0; r < strip.rows; ++r) strip.see(r, row + r, window);
    strip.finish();
    widen_rows((const T*)f.q + at, strip.rows, depth, room.queries, ld);
    widen_rows((const T*)p.grad_out + at, strip.rows, depth, room.grads, ld);
    for (int64_t i = 0; i < strip.rows * ld; ++i) room.queries[i] *= f.scale;
    transpose(room.queries, strip.rows, depth, ld, 1.0f, room.q);
    transpose(room.grads, strip.rows, depth, ld, 1.0f, room.g);
    transpose((const T*)f.out + at, strip.rows, depth, depth, 1.0f, room.o);
    for (int r = 0; r < ROWS; ++r) {
      const int64_t i = head * f.length + row + r;
      peak[r] = r < strip.rows ? f.peak[i] : 0, log_sum[r] = r < strip.rows ? f.log_sum[i] : 0;
    }
    // summed as the gradients of the weights are, so that a row that sees one key has gradients of exactly 0
    for (int v = 0; v < VECS; ++v) {
      vf mean{};
      for (int64_t d = 0; d < depth; ++d) mean += load(room.g + d * ROWS + v * W) * load(room.o + d * ROWS + v * W);
      store(mean_grad + v * W, mean);
    }
    for (int32_t begin = strip.begin; begin < strip.end; begin += int32_t(chunk)) {
      const int32_t end = lesser(strip.end, begin + int32_t(chunk));
      score_chunk(strip, room.q, room.keys + begin * ld, depth, ld, begin, end, room.weights);
      score_chunk(strip, room.g, values + begin * values_ld, depth, values_ld, begin, end, room.grad_scores);
      differentiate(strip, begin, end, peak, log_sum, mean_grad, room.weights, room.grad_scores);
      auto keys_of_rows = [&](int r, int n, int64_t* from, int64_t* to) { strip.band(r, n, begin, end, from, to); };
      auto rows_of_keys = [&](int j, int n, int64_t* from, int64_t* to) {
        const int32_t key = begin + j;
        *from = greater(0, key - row);
        *to = window > 0 && key + n - 1 + window - row < strip.rows ? key + n - 1 + window - row : strip.rows;
        if (*to < *from) *to = *from;
      };
      product<true>(strip.rows, ld, room.grad_scores, ROWS, room.keys + begin * ld, ld, room.grad_queries, ld,
                    begin == strip.begin ? nullptr : ones, end == strip.end ? scales : nullptr, keys_of_rows);
      product<false>(end - begin, ld, room.weights, ROWS, room.grads, ld, room.grad_values + begin * ld, ld, ones,
                     nullptr, rows_of_keys);
      product<false>(end - begin, ld, room.grad_scores, ROWS, room.queries, ld, room.grad_keys + begin * ld, ld, ones,
                     nullptr, rows_of_keys);
    }
    for (int r = 0; r < strip.rows; ++r)
      narrow_row(room.grad_queries + r * ld, (T*)p.grad_q + at + r * depth, depth);
  }

  const float gate = f.gate[h], rest = 1 - gate;
  double grad_gate = 0;
  for (int32_t j = 0; j < length; ++j) {
    float* mine = room.grad_keys + j * ld;
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
    narrow_row(room.grad_values + j * ld, (T*)p.grad_v + first + j * depth, depth);
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
  const int64_t chunk = f.length < CHUNK ? f.length : CHUNK;
  const int64_t threads = useful_threads(f.num_threads, units, units * f.length * f.length * f.depth);
  float* memory = nullptr;
  Cutter measure{nullptr};
  BackwardRoom{}.cut(measure, f.length, f.depth, chunk);
  const int64_t floats = measure.used;
  const Scratch scratch([&](Cutter& cutter) { memory = cutter.take(threads * floats); });
#pragma omp parallel num_threads(int(threads))
  {
    BackwardRoom room;
    Cutter cutter{memory + thread_number() * floats};
    room.cut(cutter, f.length, f.depth, chunk);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) {
      const auto run = f.dtype == Dtype::kBFloat16 ? backward_head<uint16_t> : backward_head<float>;
      run(p, unit, chunk, room);
    }
  }
}

}  // namespace icl::ICL_ISA
