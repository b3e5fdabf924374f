// smeared_attention, forward: flash attention whose keys are mixed with their predecessors as each chunk is read.
#include <cmath>

#include "cpu/attention_bfloat16.h"
#include "cpu/attention_forward.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kChunk = 256;  // keys whose scores are kept: with keys and values they fit the second-level cache

template <typename T>
void forward_strip(const SmearedAttentionFwd& p, int64_t head, int64_t row, int64_t chunk, ForwardWorkspace& work) {
  const int64_t h = head % p.heads, window = p.window ? p.window[h] : 0, first = head * p.length * p.depth;
  const T* q = (const T*)p.q + first + row * p.depth;
  Strip strip;
  strip.rows = min(kRows, int32_t(p.length - row));
  for (int r = 0; r < strip.rows; ++r) strip.see(r, row + r, window);
  strip.finish();
  transpose(q, strip.rows, p.depth, p.depth, p.scale, work.q);
  const Keys<T> keys{(const T*)p.k + first, p.depth, true, p.gate[h]};
  Softmax softmax;
  attend(strip, keys, (const T*)p.v + first, 0, 1, p.depth, (T*)p.out + first + row * p.depth, 0, chunk, work, softmax);
  for (int r = 0; r < strip.rows; ++r) {
    p.peak[head * p.length + row + r] = softmax.peak[r];
    p.log_sum[head * p.length + row + r] = logf(softmax.total[r]);
  }
}

void forward_tile_strip(const SmearedAttentionFwd& p, const Bfloat16Tile& tile, int64_t head, int64_t row,
                        TileWorkspace& work) {
  const int64_t h = head % p.heads, first = head * p.length * p.depth;
  const uint16_t* q = (const uint16_t*)p.q + first + row * p.depth;
  const uint16_t* v = (const uint16_t*)p.v + first;
  if (work.packed != head) {
    pack_keys((const uint16_t*)p.k + first, p.length, p.depth, work.keys);
    pack_values(v, p.length, p.depth, work.values);
    work.packed = head;
  }
  TileStrip strip;
  strip.rows = int(min(strip_rows(tile), p.length - row));
  for (int r = 0; r < strip.rows; ++r) {
    strip.see(r, row + r, p.window ? p.window[h] : 0);
    narrow_row(q + r * p.depth, p.depth, work.queries + r * padded_depth(p.depth));
  }
  strip.finish();
  float total[kMostStripRows], factor[kMostStripRows];
  weigh<true>(tile, strip, p.length, p.depth, Smear::of(p.gate[h], p.scale), work, p.peak + head * p.length + row,
              total);
  for (int r = 0; r < strip.rows; ++r) {
    factor[r] = 1 / total[r];
    p.log_sum[head * p.length + row + r] = logf(total[r]);
  }
  apply(tile, strip, factor, v, 0, 1, p.length, p.depth, (uint16_t*)p.out + first + row * p.depth, 0, work);
}

void forward_bfloat16(const SmearedAttentionFwd& p, const Bfloat16Tile& tile) {
  const int64_t strips = ceil_div(p.length, strip_rows(tile)), units = p.batch * p.heads * strips;
  const int64_t threads = useful_threads(p.num_threads, units, p.batch * p.heads * p.length * p.length * p.depth);
  const auto cut = [&](Cutter& cutter, TileWorkspace& work) {
    work.cut(cutter, tile, p.length, p.depth, p.depth, 1);
  };
  for_each_strip(threads, units, strips, cut, [&](int64_t unit, TileWorkspace& work) {
    forward_tile_strip(p, tile, unit / strips, (strips - 1 - unit % strips) * strip_rows(tile), work);  // longest first
  });
}

}  // namespace

void smeared_attention_fwd(const SmearedAttentionFwd& p) {
  const int64_t strips = ceil_div(p.length, kRows), units = p.batch * p.heads * strips;
  if (units * p.depth == 0) return;
  if (p.dtype == Dtype::kBFloat16)
    if (const Bfloat16Tile* tile = bfloat16_tile()) return forward_bfloat16(p, *tile);
  const int64_t chunk = min(p.length, kChunk);
  const int64_t threads = useful_threads(p.num_threads, units, p.batch * p.heads * p.length * p.length * p.depth);
  float* memory = nullptr;
  Cutter measure{nullptr};
  ForwardWorkspace{}.cut(measure, chunk, p.depth, p.depth, 1, p.length);
  const int64_t floats = measure.used;
  const Scratch scratch([&](Cutter& cutter) { memory = cutter.take(threads * floats); });
#pragma omp parallel num_threads(int(threads))
  {
    ForwardWorkspace work;
    Cutter cutter{memory + thread_number() * floats};
    work.cut(cutter, chunk, p.depth, p.depth, 1, p.length);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t row = (strips - 1 - unit % strips) * kRows;  // the longest first
      const auto run = p.dtype == Dtype::kBFloat16 ? forward_strip<uint16_t> : forward_strip<float>;
      run(p, unit / strips, row, chunk, work);
    }
  }
}

}  // namespace icl::ICL_ISA
