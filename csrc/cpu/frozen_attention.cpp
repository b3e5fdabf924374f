// frozen_attention: one attention pattern, applied to the values of many variants. The pattern of a strip of query rows
// is computed chunk by chunk, once, and multiplied with the values of every variant while it is in cache.

#include "cpu/attention_forward.h"
#include "cpu/bfloat16_tile.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {

void frozen_attention_bfloat16(const FrozenAttention& p, const Bfloat16Tile& tile);

namespace {

constexpr int64_t kChunk = 512;  // keys whose scores are kept: [kChunk, kRows] floats stay in the second-level cache

template <typename T>
void computed_pattern(const FrozenAttention& p, int64_t b, int64_t h, int64_t row, int64_t chunk,
                      ForwardWorkspace& work) {
  const int64_t window = p.window ? p.window[h] : 0, head = b * p.heads + h;
  const T* q = (const T*)p.q + head * p.length * p.depth;
  Strip strip;
  strip.rows = min(kRows, int32_t(p.rows_per_example - row));
  for (int r = 0; r < strip.rows; ++r) {
    const int64_t position = p.rows ? p.rows[b * p.rows_per_example + row + r] : row + r;
    strip.see(r, position, window);
    transpose_row(q + position * p.depth, p.depth, p.scale, r, work.q);
  }
  for (int r = strip.rows; r < kRows; ++r)
    for (int64_t d = 0; d < p.depth; ++d) work.q[d * kRows + r] = 0;
  strip.finish();
  Softmax softmax;
  const Keys<T> keys{(const T*)p.k + head * p.length * p.depth, p.depth, false, 1};
  const int64_t all_heads = p.batch * p.heads;
  attend(strip, keys, (const T*)p.v + head * p.length * p.width, all_heads * p.length * p.width, p.variants, p.width,
         (T*)p.out + (head * p.rows_per_example + row) * p.width, all_heads * p.rows_per_example * p.width, chunk, work,
         softmax);
}

// An explicit pattern: no mask; what lies outside the first and last key with weight is skipped.
template <typename T>
void explicit_pattern(const FrozenAttention& p, int64_t b, int64_t h, int64_t row, int64_t chunk,
                      ForwardWorkspace& work) {
  const int64_t head = b * p.heads + h, all_heads = p.batch * p.heads, ld = round_up(p.width, W);
  const bool in_place = sizeof(T) == 4 && p.width % W == 0;
  const int rows = min(kRows, int32_t(p.rows_per_example - row));
  const T* weights[kRows];
  Strip strip;
  strip.rows = rows;
  for (int r = 0; r < rows; ++r) {
    const int64_t position = p.rows ? p.rows[b * p.rows_per_example + row + r] : row + r;
    weights[r] = (const T*)p.pattern + (head * p.length + position) * p.length;
    int32_t first = 0, last = int32_t(p.length) - 1;
    while (first < last && widen(weights[r][first]) == 0) ++first;
    while (last > first && widen(weights[r][last]) == 0) --last;
    strip.first[r] = first, strip.last[r] = last;
  }
  strip.finish();
  float ones[kRows];
  for (int r = 0; r < kRows; ++r) ones[r] = 1;
  for (int32_t begin = strip.begin; begin < strip.end; begin += int32_t(chunk)) {
    const int32_t end = min(strip.end, begin + int32_t(chunk));
    const bool first = begin == strip.begin, last = end == strip.end;
    for (int r = 0; r < rows; ++r)
      widen_rows(weights[r] + begin, 1, end - begin, work.scores + r * chunk, end - begin);
    auto range = [&](int at, int n, int64_t* from, int64_t* to) { strip.band(at, n, begin, end, from, to); };
    for (int64_t a = 0; a < p.variants; ++a) {
      const T* variant = (const T*)p.v + (a * all_heads + head) * p.length * p.width;
      T* to = (T*)p.out + ((a * all_heads + head) * p.rows_per_example + row) * p.width;
      const float* values = work.values;
      float* sums = work.sums + (first && last ? 0 : a * kRows * ld);
      if (in_place)
        values = (const float*)(variant + begin * p.width), sums = (float*)to;
      else
        widen_rows(variant + begin * p.width, end - begin, p.width, work.values, ld);
      const bool finite = product<false>(rows, ld, work.scores, chunk, values, ld, sums, ld, first ? nullptr : ones,
                                         nullptr, range);
      if (!last) continue;
      for (int r = 0; r < rows; ++r) {
        float* sum = sums + r * ld;
        if (!finite && !is_finite(sum, p.width)) {
          widen_rows(weights[r], 1, p.length, work.weights, p.length);
          confine(work.weights, strip.first[r], strip.last[r] + 1, variant, p.width, p.width, 1, sum);
        }
        if (!in_place) narrow_row(sum, to + r * p.width, p.width);
      }
    }
  }
}

}  // namespace

void frozen_attention(const FrozenAttention& p) {
  const int64_t strips = ceil_div(p.rows_per_example, kRows), units = p.batch * p.heads * strips;
  if (units * p.variants * p.width == 0) return;
  if (p.products == Dtype::kBFloat16)
    if (const Bfloat16Tile* tile = bfloat16_tile()) return frozen_attention_bfloat16(p, *tile);
  const int64_t chunk = min(p.length, kChunk);
  const int64_t products = p.batch * p.heads * p.rows_per_example * p.length * (p.depth + p.variants * p.width);
  const int64_t threads = useful_threads(p.num_threads, units, products);
  const int64_t kept = p.length > chunk ? p.variants : 1;
  float* memory = nullptr;
  Cutter measure{nullptr};
  ForwardWorkspace{}.cut(measure, chunk, p.depth, p.width, kept, p.length);
  const int64_t floats = measure.used;
  const Scratch scratch([&](Cutter& cutter) { memory = cutter.take(threads * floats); });
#pragma omp parallel num_threads(int(threads))
  {
    ForwardWorkspace work;
    Cutter cutter{memory + thread_number() * floats};
    work.cut(cutter, chunk, p.depth, p.width, kept, p.length);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t head = unit / strips, b = head / p.heads, h = head % p.heads;
      const int64_t row = (strips - 1 - unit % strips) * kRows;  // the longest first
      const bool bf16 = p.dtype == Dtype::kBFloat16;
      const auto run = p.pattern ? (bf16 ? explicit_pattern<uint16_t> : explicit_pattern<float>)
                                 : (bf16 ? computed_pattern<uint16_t> : computed_pattern<float>);
      run(p, b, h, row, chunk, work);
    }
  }
}

}  // namespace icl::ICL_ISA
