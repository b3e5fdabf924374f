#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/isa.h"
#include "ops.h"

namespace icl {

namespace {

// Ask for huge pages behind memory that is about to be written for the first time. A result this large comes fresh from
// the system at every call, and faults in pages of 4 KB took a quarter of the time of the kernel. It is only a hint.
void expect_writes([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t huge = 2 << 20, large = 32 << 20;  // malloc keeps what is smaller than `large` for the next call
  if (bytes < large) return;
  const uintptr_t begin = (uintptr_t(memory) + huge - 1) / huge * huge;
  const uintptr_t end = (uintptr_t(memory) + uintptr_t(bytes)) / huge * huge;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

ICL_FOR_EACH_ISA(void frozen_attention(const FrozenAttention& p))
ICL_FOR_EACH_ISA(void smeared_attention_fwd(const SmearedAttentionFwd& p))
ICL_FOR_EACH_ISA(void smeared_attention_bwd(const SmearedAttentionBwd& p))

void frozen_attention_cpu(const FrozenAttention& p) {
  const int64_t element = p.dtype == Dtype::kBFloat16 ? 2 : 4;
  expect_writes(p.out, p.variants * p.batch * p.heads * p.rows_per_example * p.width * element);
  ICL_DISPATCH(frozen_attention, p);
}

void smeared_attention_fwd_cpu(const SmearedAttentionFwd& p) { ICL_DISPATCH(smeared_attention_fwd, p); }

void smeared_attention_bwd_cpu(const SmearedAttentionBwd& p) { ICL_DISPATCH(smeared_attention_bwd, p); }

}  // namespace icl
