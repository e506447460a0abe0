// clopper_pearson_lower on the CPU: the header's function over arrays.
#include <cstdio>
#include <stdexcept>
#include <string>

#include "common/clopper_pearson.h"
#include "cpu/check_counts.h"
#include "cpu/operations.h"

namespace drf_fast::cpu {

std::string show(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

void check_counts(const char* operation, const std::int64_t* successes, const std::int64_t* trials,
                  double alpha, std::int64_t size) {
  const std::string name = operation;
  if (!(alpha > 0.0 && alpha < 1.0)) {
    throw std::invalid_argument(name + ": expected 0 < alpha < 1, got " + show(alpha) +
                                "; pass the error probability, 0.001 for example");
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 53;  // integers are exact up to here
  for (std::int64_t i = 0; i < size; ++i) {
    if (trials[i] < 1 || trials[i] > kMost) {
      throw std::invalid_argument(name + ": expected trials between 1 and 2^53, got " +
                                  std::to_string(trials[i]) + " at index " + std::to_string(i) +
                                  "; pass the number of samples drawn");
    }
    if (successes[i] < 0 || successes[i] > trials[i]) {
      throw std::invalid_argument(name + ": expected successes between 0 and trials, got " +
                                  std::to_string(successes[i]) + " of " +
                                  std::to_string(trials[i]) + " at index " + std::to_string(i) +
                                  "; pass counts of the same samples");
    }
  }
}

void clopper_pearson_lower(const std::int64_t* successes, const std::int64_t* trials, double alpha,
                           double* out, std::int64_t size, [[maybe_unused]] int threads) {
  check_counts("clopper_pearson_lower", successes, trials, alpha, size);
  const Level level = make_level(alpha);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t i = 0; i < size; ++i) {
    out[i] = clopper_pearson_bound(static_cast<double>(successes[i]),
                                   static_cast<double>(trials[i]), level)
                 .p;
  }
}

}  // namespace drf_fast::cpu
