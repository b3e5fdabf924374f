// layer_norm_difference and gelu_difference, for the instruction set in use.
#include "cpu/isa.h"
#include "ops.h"

namespace icl {

ICL_FOR_EACH_ISA(void layer_norm_difference(const LayerNormDifference& p))
ICL_FOR_EACH_ISA(void gelu_difference(const GeluDifference& p))

void layer_norm_difference_cpu(const LayerNormDifference& p) { ICL_DISPATCH(layer_norm_difference, p); }

void gelu_difference_cpu(const GeluDifference& p) { ICL_DISPATCH(gelu_difference, p); }

}  // namespace icl
