// exemplar_steps, for the instruction set in use.
#include "cpu/isa.h"
#include "ops.h"

namespace icl {

ICL_FOR_EACH_ISA(void exemplar_steps(const ExemplarSteps& p))

void exemplar_steps_cpu(const ExemplarSteps& p) { ICL_DISPATCH(exemplar_steps, p); }

}  // namespace icl
