// linear_cross_entropy, head_ablation_cross_entropy and cross_entropy_difference, for the instruction set in use.
#include "cpu/isa.h"
#include "ops.h"

namespace icl {

ICL_FOR_EACH_ISA(void linear_cross_entropy_fwd(const LinearCrossEntropyFwd& p))
ICL_FOR_EACH_ISA(void linear_cross_entropy_bwd(const LinearCrossEntropyBwd& p))
ICL_FOR_EACH_ISA(void head_ablation_cross_entropy(const HeadAblation& p))
ICL_FOR_EACH_ISA(void cross_entropy_difference(const CrossEntropyDifference& p))

void linear_cross_entropy_fwd_cpu(const LinearCrossEntropyFwd& p) { ICL_DISPATCH(linear_cross_entropy_fwd, p); }

void linear_cross_entropy_bwd_cpu(const LinearCrossEntropyBwd& p) { ICL_DISPATCH(linear_cross_entropy_bwd, p); }

void head_ablation_cross_entropy_cpu(const HeadAblation& p) { ICL_DISPATCH(head_ablation_cross_entropy, p); }

void cross_entropy_difference_cpu(const CrossEntropyDifference& p) { ICL_DISPATCH(cross_entropy_difference, p); }

}  // namespace icl
