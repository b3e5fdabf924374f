// linear_cross_entropy backward. The logits are computed again, tile by tile and with the arithmetic of the forward (so
// that peak and log_sum fit them), and become their gradient g = (softmax - one-hot) * grad_loss while in registers.
//
// A strip of columns goes with a block of rows: g [block, strip] stays in the last-level cache and feeds two products,
// grad_weight^T[strip] += hidden^T g and grad_hidden[block] += g weight[strip]. g is kept in panels, [panel][row][NR]:
// that is `b` of the first product and, in MR x NR blocks, `a` of the second. Every sum has one owner and one order.
#include <cmath>
#include <cstdint>

#include "cpu/linear_cross_entropy_bfloat16.h"
#include "cpu/log_sum_exp.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace icl::ICL_ISA {
namespace {

constexpr int64_t kBlockRows = 1024;                   // at most; the depth of the product that is grad_weight
constexpr int64_t kStripPanels = 32;                   // at most; their columns are the depth of grad_hidden's
constexpr int64_t kBlockFloats = 6 * 1024 * 1024 / 4;  // hidden of a block, kept in two orders
constexpr int64_t kStripFloats = 8 * 1024 * 1024 / 4;  // weight of a strip, and as much for its gradient

struct Sizes {
  int64_t rows;      // in a block, a multiple of MR
  int64_t panels;    // in a strip
  int64_t width;     // C in whole panels
  int64_t c_panels;  // width / NR
  int64_t c_tiles;   // ceil(C / MR)
  int64_t group;     // panels whose packed weight a thread holds

  explicit Sizes(const LinearCrossEntropyBwd& p) {
    width = round_up(clamp(p.c, 1, INT32_MAX), NR);
    c_panels = width / NR;
    c_tiles = ceil_div(p.c, MR);
    rows = min(round_up(p.n, MR), round_up(clamp(kBlockFloats / width, 64, kBlockRows), MR));
    panels = min(ceil_div(p.v, NR), clamp(kStripFloats / (width * NR), 1, kStripPanels));
    group = min(Columns(p.v, p.c, 1).group, panels);
  }
};

struct Shared {
  float* hidden;       // [rows / MR][C][MR], rows that are ignored are 0
  float* hidden_t;     // [c_tiles][rows][MR]: MR columns of hidden, row by row
  float* weight;       // [c_panels][panels * NR][NR]: NR columns of the strip's weight, row by row
  float* grad_logits;  // [panels][rows][NR]
  float* grad_weight;  // [panels][c_tiles * MR][NR]
  float* grad_bias;    // [panels][NR]
  float* grad_hidden;  // [N, C]
};

struct Where {
  int64_t first_row, rows, first_panel, panels;
};

template <typename T>
void pack_hidden(const LinearCrossEntropyBwd& p, const Sizes& sizes, const Shared& s, const Where& at, int64_t tile) {
  const int64_t row = tile * MR;
  float* packed = s.hidden + row * p.c;
  const int64_t* targets = p.targets + at.first_row + row;
  pack_rows(static_cast<const T*>(p.hidden) + (at.first_row + row) * p.c, at.rows - row, p.c, packed,
            [&](int r) { return targets[r] != p.ignore_index; });
  if (!p.grad_weight) return;
  for (int64_t c = 0; c < sizes.c_tiles * MR; ++c)
    for (int r = 0; r < MR; ++r)
      s.hidden_t[(c / MR * sizes.rows + row + r) * MR + c % MR] = c < p.c ? packed[c * MR + r] : 0.0f;
}

// Row `column` of the strip's weight, for the product with grad_hidden.
template <typename T>
void copy_weight(const LinearCrossEntropyBwd& p, const Sizes& sizes, const Shared& s, const Where& at, int64_t column) {
  const int64_t v = at.first_panel * NR + column;
  const T* from = static_cast<const T*>(p.weight) + v * p.c;
  for (int64_t j = 0; j < sizes.c_panels; ++j) {
    float* out = s.weight + (j * sizes.panels * NR + column) * NR;
    const int64_t here = v < p.v ? min(NR, p.c - j * NR) : 0;
    for (int64_t i = 0; i < here; ++i) out[i] = widen(from[j * NR + i]);
    for (int64_t i = here; i < NR; ++i) out[i] = 0;
  }
}

// grad_logits of the panels [first, first + count) of the strip and the row tiles [tile_begin, tile_end).
template <typename T>
void differentiate(const LinearCrossEntropyBwd& p, const Sizes& sizes, const Shared& s, const Where& at, int64_t first,
                   int64_t count, int64_t tile_begin, int64_t tile_end, float* packed /* [group][C][NR] */) {
  alignas(64) float offsets[Columns::kGroupPanels * NR];
  const Weight<T> weight{static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), p.c, p.v};
  for (int64_t i = 0; i < count; ++i)
    weight.pack(at.first_panel + first + i, packed + i * p.c * NR, offsets + i * NR);
  for (int64_t row = tile_begin * MR; row < tile_end * MR; row += MR)
    for (int64_t i = 0; i < count; ++i) {
      Tile logits;
      multiply(s.hidden + row * p.c, packed + i * p.c * NR, p.c, logits);
      float* out = s.grad_logits + ((first + i) * sizes.rows + row) * NR;
      for (int r = 0; r < MR; ++r, out += NR) {
        const int64_t n = at.first_row + row + r;
        const bool counts = row + r < at.rows && p.targets[n] != p.ignore_index;
        const vf peak = splat(counts ? p.peak[n] : 0), log_sum = splat(counts ? p.log_sum[n] : 0);
        const vf grad = splat(counts ? p.grad_losses[n] : 0);
        for (int v = 0; v < NV; ++v) {
          const vf logit = logits.at[r][v] + load(offsets + i * NR + v * W);
          store(out + v * W, counts ? exp(logit - peak - log_sum) * grad : vf{});
        }
        if (!counts) continue;
        // p - 1 at the target, without the cancellation when p is near 1
        const int64_t target = p.targets[n] - (at.first_panel + first + i) * NR;
        if (target >= 0 && target < NR) out[target] = expm1f(-p.losses[n]) * p.grad_losses[n];
      }
    }
}

// grad_weight^T of a panel, rows [c_begin, c_end) of MR, summed over the block of rows.
void add_grad_weight(const Sizes& sizes, const Shared& s, const Where& at, int64_t panel, int64_t c_begin,
                     int64_t c_end) {
  const float* grad = s.grad_logits + panel * sizes.rows * NR;
  const int64_t rows = round_up(at.rows, MR);
  for (int64_t tile = c_begin; tile < c_end; ++tile) {
    Tile product;
    multiply(s.hidden_t + tile * sizes.rows * MR, grad, rows, product);
    float* out = s.grad_weight + (panel * sizes.c_tiles + tile) * MR * NR;
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v, out += W)
        store(out, at.first_row == 0 ? product.at[r][v] : load(out) + product.at[r][v]);
  }
}

void add_grad_bias(const Sizes& sizes, const Shared& s, const Where& at, int64_t panel) {
  const float* grad = s.grad_logits + panel * sizes.rows * NR;
  float* out = s.grad_bias + panel * NR;
  vf total[NV] = {};
  for (int64_t begin = 0; begin < at.rows; begin += 32) {  // short sums first, for their smaller errors
    vf sum[NV] = {};
    for (int64_t row = begin; row < min(begin + 32, at.rows); ++row)
      for (int v = 0; v < NV; ++v) sum[v] += load(grad + row * NR + v * W);
    for (int v = 0; v < NV; ++v) total[v] += sum[v];
  }
  for (int v = 0; v < NV; ++v)
    store(out + v * W, at.first_row == 0 ? total[v] : load(out + v * W) + total[v]);
}

// grad_hidden of a row tile, NR columns of it, summed over the strip.
void add_grad_hidden(const LinearCrossEntropyBwd& p, const Sizes& sizes, const Shared& s, const Where& at, int64_t tile,
                     int64_t c_panel) {
  constexpr int64_t kPanels = kPiece / NR;
  const float* weight = s.weight + c_panel * sizes.panels * NR * NR;
  Tile total{};
  for (int64_t begin = 0; begin < at.panels; begin += kPanels) {
    Tile piece{};
    for (int64_t i = begin; i < min(begin + kPanels, at.panels); ++i) {
      const float* grad = s.grad_logits + (i * sizes.rows + tile * MR) * NR;
      if (i + 1 < at.panels)  // too far away for the hardware to guess
        for (int64_t j = 0; j < MR * NR; j += 16) __builtin_prefetch(grad + sizes.rows * NR + j);
      multiply_add(grad, NR, 1, weight + i * NR * NR, NR, NR, piece.at);
    }
    for (int r = 0; r < MR; ++r)
      for (int v = 0; v < NV; ++v) total.at[r][v] += piece.at[r][v];
  }
  const int64_t columns = min(NR, p.c - c_panel * NR);
  alignas(64) float edge[NR];
  for (int r = 0; r < min(MR, at.rows - tile * MR); ++r) {
    float* out = s.grad_hidden + (at.first_row + tile * MR + r) * p.c + c_panel * NR;
    for (int v = 0; v < NV; ++v) {
      if ((v + 1) * W <= columns) {
        store(out + v * W, at.first_panel == 0 ? total.at[r][v] : load(out + v * W) + total.at[r][v]);
      } else {
        store(edge + v * W, total.at[r][v]);
        for (int64_t i = v * W; i < columns; ++i) out[i] = at.first_panel == 0 ? edge[i] : out[i] + edge[i];
      }
    }
  }
}

template <typename T>
void write_grad_weight(const LinearCrossEntropyBwd& p, const Sizes& sizes, const Shared& s, const Where& at,
                       int64_t panel) {
  const int64_t column = (at.first_panel + panel) * NR, here = min(NR, p.v - column);
  const float* grad = s.grad_weight + panel * sizes.c_tiles * MR * NR;
  T* out = static_cast<T*>(p.grad_weight) + column * p.c;
  for (int64_t begin = 0; begin < p.c; begin += 16)  // 16 rows of NR floats stay in the first-level cache
    for (int64_t j = 0; j < here; ++j)
      for (int64_t c = begin; c < min(begin + 16, p.c); ++c) narrow(grad[c * NR + j], out + j * p.c + c);
}

template <typename T>
void backward(const LinearCrossEntropyBwd& p) {
  const Sizes sizes(p);
  const int threads = p.num_threads;
  const bool apart = p.grad_hidden && sizeof(T) != 4;  // grad_hidden is summed in float32
  const int64_t packed_floats = sizes.group * p.c * NR;
  Shared s{};
  float* packed;
  const Scratch scratch([&](Cutter& cutter) {
    s.hidden = cutter.take(sizes.rows * p.c);
    s.hidden_t = cutter.take(p.grad_weight ? sizes.rows * sizes.c_tiles * MR : 0);
    s.weight = cutter.take(p.grad_hidden ? sizes.width * sizes.panels * NR : 0);
    s.grad_logits = cutter.take(sizes.rows * sizes.panels * NR);
    s.grad_weight = cutter.take(p.grad_weight ? sizes.panels * NR * sizes.c_tiles * MR : 0);
    s.grad_bias = cutter.take(sizes.panels * NR);
    s.grad_hidden = cutter.take(apart ? p.n * p.c : 0);
    packed = cutter.take(threads * packed_floats);
  });
  if (!apart) s.grad_hidden = static_cast<float*>(p.grad_hidden);

  const int64_t all_panels = ceil_div(p.v, NR);
#pragma omp parallel num_threads(threads)
  for (int64_t first_panel = 0; first_panel < all_panels; first_panel += sizes.panels) {
    const int64_t panels = min(sizes.panels, all_panels - first_panel), groups = ceil_div(panels, sizes.group);
    for (int64_t first_row = 0; first_row < p.n; first_row += sizes.rows) {
      const Where at{first_row, min(sizes.rows, p.n - first_row), first_panel, panels};
      const int64_t tiles = ceil_div(at.rows, MR);
      if (first_panel == 0 || sizes.rows < p.n) {
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; ++tile) pack_hidden<T>(p, sizes, s, at, tile);
      }
      if (p.grad_hidden && first_row == 0) {
#pragma omp for schedule(static) nowait
        for (int64_t column = 0; column < panels * NR; ++column) copy_weight<T>(p, sizes, s, at, column);
      }
      const int64_t parts = clamp(ceil_div(4 * threads, groups), 1, ceil_div(tiles, 16));
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < groups * parts; ++task) {
        const int64_t first = task / parts * sizes.group, part = task % parts;
        differentiate<T>(p, sizes, s, at, first, min(sizes.group, panels - first), tiles * part / parts,
                         tiles * (part + 1) / parts, packed + thread_number() * packed_floats);
      }
      if (p.grad_weight) {
        const int64_t cuts = clamp(ceil_div(4 * threads, panels), 1, sizes.c_tiles);
#pragma omp for schedule(dynamic) nowait
        for (int64_t task = 0; task < panels * cuts; ++task) {
          const int64_t cut = task % cuts;
          add_grad_weight(sizes, s, at, task / cuts, sizes.c_tiles * cut / cuts, sizes.c_tiles * (cut + 1) / cuts);
        }
      }
      if (p.grad_bias) {
#pragma omp for schedule(static) nowait
        for (int64_t panel = 0; panel < panels; ++panel) add_grad_bias(sizes, s, at, panel);
      }
      if (p.grad_hidden) {
        const int64_t cuts = clamp(ceil_div(4 * threads, sizes.c_panels), 1, tiles);
#pragma omp for schedule(dynamic) nowait
        for (int64_t task = 0; task < sizes.c_panels * cuts; ++task) {
          const int64_t cut = task % cuts;
          for (int64_t tile = tiles * cut / cuts; tile < tiles * (cut + 1) / cuts; ++tile)
            add_grad_hidden(p, sizes, s, at, tile, task / cuts);
        }
      }
#pragma omp barrier
    }
    const Where at{0, 0, first_panel, panels};
    if (p.grad_weight) {
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < panels; ++panel) write_grad_weight<T>(p, sizes, s, at, panel);
    }
    if (p.grad_bias) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < min(panels * NR, p.v - first_panel * NR); ++i)
        narrow(s.grad_bias[i], static_cast<T*>(p.grad_bias) + first_panel * NR + i);
    }
#pragma omp barrier
  }
  if (apart) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < p.n * p.c; ++i) narrow(s.grad_hidden[i], static_cast<T*>(p.grad_hidden) + i);
  }
}

}  // namespace

void linear_cross_entropy_bwd(const LinearCrossEntropyBwd& p) {
  const Bfloat16Tile* kernel = bfloat16_tile();
  if (p.dtype == Dtype::kBFloat16 && kernel) {
    linear_cross_entropy_bwd_bfloat16(p, *kernel);
  } else if (p.dtype == Dtype::kBFloat16) {
    backward<uint16_t>(p);
  } else {
    backward<float>(p);
  }
}

}  // namespace icl::ICL_ISA
