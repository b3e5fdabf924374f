// frozen_attention with products of bfloat16: the inputs' own, or float32 that is rounded.
#include "cpu/attention_bfloat16.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

// Variants whose packed values stay in cache beside each other; more go in groups, each with the pattern anew.
constexpr int64_t kValues = 1 << 20;

template <typename T>
struct Work {
  const FrozenAttention& p;
  const Bfloat16Tile& tile;
  int64_t group;  // variants at a time

  int64_t groups() const { return ceil_div(p.variants, group); }

  // Unit i: a strip of a group of variants of a head.
  void run(int64_t i, TileWorkspace& work) const {
    const int64_t strips = ceil_div(p.rows_per_example, strip_rows(tile)), all_heads = p.batch * p.heads;
    const int64_t part = i / strips, head = part / groups(), b = head / p.heads, first = part % groups() * group;
    const int64_t variants = min(group, p.variants - first);
    const int64_t row = (strips - 1 - i % strips) * strip_rows(tile);  // the longest first
    const int64_t v_stride = all_heads * p.length * p.width, out_stride = all_heads * p.rows_per_example * p.width;
    const T* v = (const T*)p.v + first * v_stride + head * p.length * p.width;
    T* out = (T*)p.out + first * out_stride + (head * p.rows_per_example + row) * p.width;
    if (work.packed != part) pack(head, v, v_stride, variants, work), work.packed = part;
    TileStrip strip;
    strip.rows = int(min(strip_rows(tile), p.rows_per_example - row));
    int64_t positions[kMostStripRows];
    for (int r = 0; r < strip.rows; ++r)
      positions[r] = p.rows ? p.rows[b * p.rows_per_example + row + r] : row + r;
    float factor[kMostStripRows];
    if (p.pattern) {
      given_weights(head, positions, strip, work);
      for (float& f : factor) f = 1;
    } else {
      computed_weights(head, positions, strip, work, factor);
    }
    apply(tile, strip, factor, v, v_stride, variants, p.length, p.width, out, out_stride, work);
  }

 private:
  void pack(int64_t head, const T* v, int64_t v_stride, int64_t variants, TileWorkspace& work) const {
    if (!p.pattern)
      pack_keys((const T*)p.k + head * p.length * p.depth, p.length, p.depth, work.keys);
    const int64_t size = round_up(p.length, kPanelColumns) * round_up(p.width, kPanelColumns);
    for (int64_t a = 0; a < variants; ++a) pack_values(v + a * v_stride, p.length, p.width, work.values + a * size);
  }

  void computed_weights(int64_t head, const int64_t* positions, TileStrip& strip, TileWorkspace& work,
                        float* factor) const {
    const T* q = (const T*)p.q + head * p.length * p.depth;
    for (int r = 0; r < strip.rows; ++r) {
      strip.see(r, positions[r], p.window ? p.window[head % p.heads] : 0);
      narrow_row(q + positions[r] * p.depth, p.depth, work.queries + r * padded_depth(p.depth));
    }
    strip.finish();
    float peak[kMostStripRows], total[kMostStripRows];
    weigh<false>(tile, strip, p.length, p.depth, Smear::none(p.scale), work, peak, total);
    for (int r = 0; r < strip.rows; ++r) factor[r] = 1 / total[r];
  }

  // No mask; what lies outside the first and last key with weight is skipped.
  void given_weights(int64_t head, const int64_t* positions, TileStrip& strip, TileWorkspace& work) const {
    const auto row = [&](int r) { return (const T*)p.pattern + (head * p.length + positions[r]) * p.length; };
    for (int r = 0; r < strip.rows; ++r) {
      strip.first[r] = 0, strip.last[r] = int32_t(p.length) - 1;
      while (strip.first[r] < strip.last[r] && widen(row(r)[strip.first[r]]) == 0) ++strip.first[r];
      while (strip.last[r] > strip.first[r] && widen(row(r)[strip.last[r]]) == 0) --strip.last[r];
    }
    strip.finish();
    for (int r = 0; r < strip.rows; ++r)
      narrow_row(row(r) + strip.begin, min(int64_t(strip.end), p.length) - strip.begin,
                 work.weights + r * row_step(p.length));
  }
};

template <typename T>
void run_all(const FrozenAttention& p, const Bfloat16Tile& tile) {
  const int64_t values = round_up(p.length, kPanelColumns) * round_up(p.width, kPanelColumns);
  const Work<T> all{p, tile, clamp(kValues / values, 1, p.variants)};
  const int64_t strips = ceil_div(p.rows_per_example, strip_rows(tile));
  const int64_t units = p.batch * p.heads * all.groups() * strips;
  const int64_t products = p.batch * p.heads * p.rows_per_example * p.length * (p.depth + p.variants * p.width);
  const int64_t threads = useful_threads(p.num_threads, units, products);
  const auto cut = [&](Cutter& cutter, TileWorkspace& work) {
    work.cut(cutter, tile, p.length, p.depth, p.width, all.group);
  };
  for_each_strip(threads, units, strips, cut, [&](int64_t unit, TileWorkspace& work) { all.run(unit, work); });
}

}  // namespace

void frozen_attention_bfloat16(const FrozenAttention& p, const Bfloat16Tile& tile) {
  return p.dtype == Dtype::kBFloat16 ? run_all<uint16_t>(p, tile) : run_all<float>(p, tile);
}

}  // namespace icl::ICL_ISA
