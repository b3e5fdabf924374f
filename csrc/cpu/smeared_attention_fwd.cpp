// smeared_attention, forward: flash attention whose keys are mixed with their predecessors as each chunk is read.
#include <cmath>

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

}  // namespace

void smeared_attention_fwd(const SmearedAttentionFwd& p) {
  const int64_t strips = ceil_div(p.length, kRows), units = p.batch * p.heads * strips;
  if (units * p.depth == 0) return;
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
