// Every CPU kernel of ops.h but axpy, as compiled for the instruction set in use.
#include "cpu/isa.h"
#include "ops.h"

#define ICL_CPU_KERNEL(name, Arguments)                          \
  ICL_FOR_EACH_ISA(void name(const Arguments& p))                \
  void name##_cpu(const Arguments& p) { ICL_DISPATCH(name, p); }

namespace icl {

ICL_CPU_KERNEL(linear_cross_entropy_fwd, LinearCrossEntropyFwd)
ICL_CPU_KERNEL(linear_cross_entropy_bwd, LinearCrossEntropyBwd)
ICL_CPU_KERNEL(linear_cross_entropy_fwd_bwd, LinearCrossEntropyFwdBwd)
ICL_CPU_KERNEL(head_ablation_cross_entropy, HeadAblation)
ICL_CPU_KERNEL(cross_entropy_difference, CrossEntropyDifference)
ICL_CPU_KERNEL(frozen_attention, FrozenAttention)
ICL_CPU_KERNEL(smeared_attention_fwd, SmearedAttentionFwd)
ICL_CPU_KERNEL(smeared_attention_bwd, SmearedAttentionBwd)
ICL_CPU_KERNEL(layer_norm_difference, LayerNormDifference)
ICL_CPU_KERNEL(activation_difference, ActivationDifference)
ICL_CPU_KERNEL(gated_difference, GatedDifference)
ICL_CPU_KERNEL(pack_weight, PackWeight)
ICL_CPU_KERNEL(project, Project)
ICL_CPU_KERNEL(exemplar_steps, ExemplarSteps)

}  // namespace icl
