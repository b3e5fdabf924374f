#include "cpu/isa.h"
#include "ops.h"

namespace icl {

ICL_FOR_EACH_ISA(void frozen_attention(const FrozenAttention& p))
ICL_FOR_EACH_ISA(void smeared_attention_fwd(const SmearedAttentionFwd& p))
ICL_FOR_EACH_ISA(void smeared_attention_bwd(const SmearedAttentionBwd& p))

void frozen_attention_cpu(const FrozenAttention& p) { ICL_DISPATCH(frozen_attention, p); }

void smeared_attention_fwd_cpu(const SmearedAttentionFwd& p) { ICL_DISPATCH(smeared_attention_fwd, p); }

void smeared_attention_bwd_cpu(const SmearedAttentionBwd& p) { ICL_DISPATCH(smeared_attention_bwd, p); }

}  // namespace icl
