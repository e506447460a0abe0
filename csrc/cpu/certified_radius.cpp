// certified_radius on the CPU: the header's function over arrays.
#include "common/certified_radius.h"

#include <limits>
#include <stdexcept>

#include "cpu/check_counts.h"
#include "cpu/operations.h"

namespace drf_fast::cpu {

void certified_radius(const std::int64_t* successes, const std::int64_t* trials, double sigma,
                      double alpha, double* out, std::int64_t size, [[maybe_unused]] int threads) {
  if (!(sigma > 0.0 && sigma <= std::numeric_limits<double>::max())) {
    throw std::invalid_argument("certified_radius: expected a finite sigma > 0, got " +
                                show(sigma) +
                                "; pass the standard deviation of the noise in pixel units");
  }
  check_counts("certified_radius", successes, trials, alpha, size);
  const Level level = make_level(alpha);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = certified_radius_of(clopper_pearson_bound(static_cast<double>(successes[i]),
                                                       static_cast<double>(trials[i]), level),
                                 sigma);
  }
}

}  // namespace drf_fast::cpu
