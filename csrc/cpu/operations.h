// What bindings.cpp calls. Plain C++ types; addresses and sizes were checked by the caller, values
// are checked here and throw std::invalid_argument.
#pragma once

#include <cstdint>

namespace drf_fast::cpu {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// counts[image][argmax of each of its rows] += 1. logits is (rows, classes), the rows of an image
// consecutive; rows is a multiple of images. Ties go to the lowest class, a row with a NaN votes
// for none.
void vote(const void* logits, Dtype dtype, std::int64_t rows, std::int64_t classes,
          std::int64_t* counts, std::int64_t images, int threads);

// out[i] <= the p with P(Bin(trials[i], p) >= successes[i]) = alpha; see common/clopper_pearson.h.
void clopper_pearson_lower(const std::int64_t* successes, const std::int64_t* trials, double alpha,
                           double* out, std::int64_t size, int threads);

// out[i] <= sigma * Phi^-1 of that p, 0 where p <= 1/2; see common/certified_radius.h.
void certified_radius(const std::int64_t* successes, const std::int64_t* trials, double sigma,
                      double alpha, double* out, std::int64_t size, int threads);

}  // namespace drf_fast::cpu
