#include "ops.h"

namespace icl {

void axpy_cpu(float* out, const float* x, const float* y, int64_t n, float a, [[maybe_unused]] int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (n > 16384)
  for (int64_t i = 0; i < n; ++i) out[i] = a * x[i] + y[i];
}

}  // namespace icl
