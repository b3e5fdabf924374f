// What the kernels of head_ablation_cross_entropy hand to each other, among them Hopper's own for the main product.
#pragma once

#include "cuda/log_sum_exp.h"
#include "cuda/numbers.h"

namespace icl {

// What is known about rows and columns beside the products.
struct Sides {
  float* mean;          // [N], of the stream
  float* mean_removed;  // [H, N], of what a head wrote
  float* inverse;       // [H + 1, N], 1 / sd; row 0 is the base
  float* head_means;    // [H, d], of the rows of W_O
  float* sums;          // [columns of a chunk], of the rows of G
  float* offsets;       // [columns of a chunk], b W^T + bias
};

// The factors of the products, rows aligned and with zeros between.
template <typename T>
struct Factors {
  T* stream;  // [N][c], x
  T* heads;   // [H][d][c], W_O
  T* weight;  // [columns of a chunk][c], G
  T* m;       // [columns of a chunk][H][d]
  int64_t c, d;
};

struct Columns {  // of a chunk
  int64_t first, count;
};

// The main kernel on Hopper, for a chunk whose G and M are there; the partials hold those of the chunks before.
ICL_MAY_LACK cudaError_t launch_head_ablation_chunk_sm90(const HeadAblation& p, const Sides& sides,
                                                         const Factors<bf16>& factors, const Partials& partials,
                                                         const Columns& columns, cudaStream_t stream);
ICL_MAY_LACK cudaError_t launch_head_ablation_chunk_sm90(const HeadAblation& p, const Sides& sides,
                                                         const Factors<fp16>& factors, const Partials& partials,
                                                         const Columns& columns, cudaStream_t stream);

}  // namespace icl
