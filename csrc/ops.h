// Every host entry point of csrc, CPU and CUDA. Pointers, sizes, stream: no torch, no Python.
//
// One struct of arguments an op and direction, for both devices. CPU kernels take float32 and bfloat16 and throw
// std::bad_alloc. CUDA launchers take float16 too; their scratch memory comes from the caller, as many bytes as the
// function beside the launcher says; `arch` 80 keeps them to the kernels that every GPU since sm_80 runs, 90 allows
// Hopper's. The stream comes last, empty input returns before the launch, the result is the launch's own error code.
// They never print, exit or synchronise.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef ICL_CUDA
#include <driver_types.h>
#endif

namespace icl {

enum class Dtype { kFloat32, kBFloat16, kFloat16 };

// out = a * x + y, float32. The smallest whole route from Python to a kernel; `icl-fast info` runs it as a self-test.
void axpy_cpu(float* out,      // [n]
              const float* x,  // [n]
              const float* y,  // [n]
              int64_t n, float a, int num_threads);

struct FrozenAttention {
  void* out;            // [variants, batch, heads, rows_per_example, width]
  const void* q;        // [batch, heads, length, depth], null with a pattern
  const void* k;        // [batch, heads, length, depth], null with a pattern
  const void* v;        // [variants, batch, heads, length, width]
  const void* pattern;  // [batch, heads, length, length], or null
  const int64_t* window;  // [heads], 0: dense; or null
  const int64_t* rows;    // [batch, rows_per_example], or null: all
  int64_t variants, batch, heads, length, rows_per_example, depth, width;
  float scale;
  Dtype dtype;
  Dtype products;  // kBFloat16 with float32: q, k, v and the pattern are rounded; CPU only
  int num_threads;  // CPU only
};

struct SmearedAttentionFwd {
  const void* q;        // [batch, heads, length, depth]
  const void* k;        // [batch, heads, length, depth], not smeared
  const void* v;        // [batch, heads, length, depth]
  const float* gate;    // [heads], sigmoid(alpha)
  const int64_t* window;  // [heads], 0: dense; or null
  void* out;            // [batch, heads, length, depth]
  float* peak;          // [batch, heads, length], largest score of the row
  float* log_sum;       // [batch, heads, length], log of the sum of exp(score - peak)
  int64_t batch, heads, length, depth;
  float scale;
  Dtype dtype;
  int num_threads;  // CPU only
};

struct SmearedAttentionBwd {
  SmearedAttentionFwd forward;
  const void* grad_out;  // [batch, heads, length, depth]
  void* grad_q;          // [batch, heads, length, depth]
  void* grad_k;          // [batch, heads, length, depth]
  void* grad_v;          // [batch, heads, length, depth]
  double* grad_gate;     // [batch, heads]: the sum over the batch is left to the caller
};

void frozen_attention_cpu(const FrozenAttention& p);
void smeared_attention_fwd_cpu(const SmearedAttentionFwd& p);
void smeared_attention_bwd_cpu(const SmearedAttentionBwd& p);

struct LinearCrossEntropyFwd {
  float* losses;           // [N]
  float* peak;             // [N], the largest logit
  float* log_sum;          // [N], log(sum of exp(logit - peak))
  const void* hidden;      // [N, C]
  const void* weight;      // [V, C]
  const int64_t* targets;  // [N], in 0..V-1 or ignore_index
  const void* bias;        // [V] or null
  int64_t n, c, v;
  int64_t ignore_index;
  Dtype dtype;  // of hidden, weight and bias
  int num_threads;  // CPU only
};

void linear_cross_entropy_fwd_cpu(const LinearCrossEntropyFwd& p);

struct LinearCrossEntropyBwd {
  void* grad_hidden;         // [N, C], or null: not needed
  void* grad_weight;         // [V, C] or null
  void* grad_bias;           // [V] or null
  const float* grad_losses;  // [N]
  const void* hidden;        // [N, C]
  const void* weight;        // [V, C]
  const int64_t* targets;    // [N]
  const void* bias;          // [V] or null
  const float* losses;       // [N], and the next two, of the forward
  const float* peak;         // [N]
  const float* log_sum;      // [N]
  int64_t n, c, v;
  int64_t ignore_index;
  Dtype dtype;  // of hidden, weight, bias and their gradients
  int num_threads;  // CPU only
};

void linear_cross_entropy_bwd_cpu(const LinearCrossEntropyBwd& p);

struct LinearCrossEntropyFwdBwd {
  float* losses;           // [N]
  void* grad_hidden;       // [N, C], and the next two, of the sum of the losses times grad_loss
  void* grad_weight;       // [V, C]
  void* grad_bias;         // [V], or null: not needed
  const void* hidden;      // [N, C]; in float32 C is a multiple of 16
  const void* weight;      // [V, C]
  const int64_t* targets;  // [N], in 0..V-1 or ignore_index
  const void* bias;        // [V] or null
  int64_t n, c, v;
  int64_t ignore_index;
  float grad_loss;
  Dtype dtype;  // of all but losses and targets; bfloat16 where there is a unit for it
  int num_threads;
};

void linear_cross_entropy_fwd_bwd_cpu(const LinearCrossEntropyFwdBwd& p);

struct HeadAblation {
  float* base;              // [N]
  float* losses;            // [H, N]
  const void* resid;        // [N, C]
  const void* z;            // [H, N, D]
  const void* w_o;          // [H, D, C]
  const void* weight;       // [V, C]
  const int64_t* targets;   // [N], in 0..V-1
  const void* norm_weight;  // [C] or null: 1
  const void* norm_bias;    // [C] or null: 0
  const void* bias;         // [V] or null
  int64_t n, h, d, c, v;
  float eps;
  Dtype dtype;  // of every input but targets
  int num_threads;  // CPU only
};

void head_ablation_cross_entropy_cpu(const HeadAblation& p);

struct CrossEntropyDifference {
  float* base;             // [N]
  float* difference;       // [A, N]
  const void* hidden;      // [N, C]
  const void* removed;     // [A, N, C]
  const void* weight;      // [V, C]
  const uint16_t* packed;  // the weight by pack_weight, or null; CPU only
  const int64_t* targets;  // [N], in 0..V-1
  const void* bias;        // [V] or null
  int64_t a, n, c, v;
  Dtype dtype;  // of hidden, removed, weight and bias
  Dtype products;  // CPU only; kBFloat16 with float32: the first three are rounded where there is a bfloat16 unit
  int num_threads;  // CPU only
};

void cross_entropy_difference_cpu(const CrossEntropyDifference& p);

struct LayerNormDifference {
  void* out;            // [A, N, C]
  const void* x;        // [N, C]
  const void* removed;  // [A, N, C]
  const void* weight;   // [C] or null: 1
  int64_t a, n, c;
  int centre;  // 0: the difference of an RMSNorm
  float eps;
  Dtype dtype;  // of every tensor
  int num_threads;  // CPU only
};

void layer_norm_difference_cpu(const LayerNormDifference& p);

// In the order of ACTIVATIONS in icl_fast/ops/activation_difference.py
enum class Activation { kGelu, kGeluTanh, kSilu, kRelu };

struct ActivationDifference {
  void* out;            // [A, N, M]
  const void* u;        // [N, M]
  const void* removed;  // [A, N, M]
  int64_t a, n, m;
  int activation;
  Dtype dtype;  // of every tensor
  int num_threads;  // CPU only
};

void activation_difference_cpu(const ActivationDifference& p);

struct GatedDifference {
  void* out;                 // [A, N, M]
  const void* gate;          // [N, M]
  const void* up;            // [N, M]
  const void* gate_removed;  // [A, N, M]
  const void* up_removed;    // [A, N, M]
  int64_t a, n, m;
  int activation;
  Dtype dtype;  // of every tensor
  int num_threads;  // CPU only
};

void gated_difference_cpu(const GatedDifference& p);

// CPU only: a weight as panels of bfloat16 (cpu/bfloat16_pack.h), which the ops take beside it.
struct PackWeight {
  uint16_t* packed;     // [ceil(m / 32), c rounded up to 32, 32]
  const float* weight;  // [m, c]
  int64_t m, c;
  int num_threads;
};

void pack_weight_cpu(const PackWeight& p);

// Float32, CPU only: out = x W^T, or out += x W^T.
struct Project {
  float* out;              // [n, m]
  const float* x;          // [n, c]
  const float* weight;     // [m, c]
  const uint16_t* packed;  // of pack_weight, or null
  int64_t n, m, c;
  bool add;
  Dtype products;  // kBFloat16: x and weight are rounded
  int num_threads;
};

void project_cpu(const Project& p);

// Float32, CPU only; the docstring of icl_fast/training/exemplar_steps.py says what it computes.
struct ExemplarSteps {
  float* losses;                  // [S, P]
  const int64_t* parameters;      // [8 + 6 L, 3]: addresses of [P, ...] weights, first and second moments; 0: none
  const float* features;          // [K * E, F]
  const int64_t* classes;         // [S, P, B, n + 1]
  const int64_t* exemplars;       // [S, P, B, n + 1]
  const int64_t* labels;          // [S, P, B, n]
  const int64_t* target;          // [S, P, B]
  const double* learning_rates;   // [S]
  const int64_t* outputs;         // [P]
  const bool* previous_token;     // [P, H], and the rest of Clamps
  const bool* first_layer;        // [P]
  const bool* match;              // [P, H]
  const int64_t* copy;            // [P]
  const bool* no_previous_token;  // [P]
  const float* heads_scale;       // [P, L, H]
  const float* temperature;       // [P, L, H]
  const bool* trainable;          // [8 + 6 L, P]
  const float* l2;                // [8 + 6 L]
  const float* positions;         // [T, C], added and not trained; or null
  const float* cos;               // [T, D / 2], rotations; or null
  const float* sin;               // [T, D / 2]
  int64_t steps, members, batch, pairs, exemplars_per_class, feature_count, label_count, width, heads, layers;
  int64_t first_step;     // updates before these
  int64_t position_kind;  // 0: no position is added, 1: a parameter, 2: `positions`
  float norm_eps;
  double beta1, beta2, eps;
  int num_threads;
};

void exemplar_steps_cpu(const ExemplarSteps& p);

#ifdef ICL_CUDA
// Null where the file that defines it did not compile and the build went on without (csrc/keep_going.py).
#define ICL_MAY_LACK __attribute__((weak))

ICL_MAY_LACK cudaError_t launch_axpy(float* out,      // [n]
                                     const float* x,  // [n]
                                     const float* y,  // [n]
                                     int64_t n, float a, cudaStream_t stream);

#define ICL_CUDA_KERNEL(name, Arguments)                               \
  ICL_MAY_LACK size_t name##_workspace(const Arguments& p, int arch);  \
  ICL_MAY_LACK cudaError_t launch_##name(const Arguments& p, void* workspace, int arch, cudaStream_t stream)

ICL_CUDA_KERNEL(frozen_attention, FrozenAttention);
ICL_CUDA_KERNEL(smeared_attention_fwd, SmearedAttentionFwd);
ICL_CUDA_KERNEL(smeared_attention_bwd, SmearedAttentionBwd);
ICL_CUDA_KERNEL(linear_cross_entropy_fwd, LinearCrossEntropyFwd);
ICL_CUDA_KERNEL(linear_cross_entropy_bwd, LinearCrossEntropyBwd);
ICL_CUDA_KERNEL(head_ablation_cross_entropy, HeadAblation);
ICL_CUDA_KERNEL(cross_entropy_difference, CrossEntropyDifference);
ICL_CUDA_KERNEL(layer_norm_difference, LayerNormDifference);
ICL_CUDA_KERNEL(activation_difference, ActivationDifference);
ICL_CUDA_KERNEL(gated_difference, GatedDifference);
#endif

}  // namespace icl
