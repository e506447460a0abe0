// Checks of the arguments of both bounds, with common messages.
#pragma once

#include <cstdint>
#include <string>

namespace drf_fast::cpu {

// Throws std::invalid_argument unless 0 < alpha < 1 and, for every i, 1 <= trials[i] <= 2^53 and
// 0 <= successes[i] <= trials[i].
void check_counts(const char* operation, const std::int64_t* successes, const std::int64_t* trials,
                  double alpha, std::int64_t size);

// A number as %g prints it: 0.001, 1e-12, nan.
std::string show(double value);

}  // namespace drf_fast::cpu
