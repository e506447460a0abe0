// What bindings.cpp calls. Plain C++ types; addresses and sizes were checked by the caller, values
// are checked here and throw std::invalid_argument.
#pragma once

#include <cstdint>

#include "cpu/floats.h"

namespace drf_fast::cpu {

// The noise of batch images of channels * area pixels each, num_samples copies of every image.
struct NoisyRepeat {
  std::int64_t batch, num_samples, channels, area;
  bool channels_last;  // of x and of out; else logical NCHW order
  const std::int64_t* image_ids;
  std::int64_t sample_offset;
  int stream;
  std::uint64_t key;
  double sigma;
};

// out[b m + i] = x[b] + sigma z(key, stream, image_ids[b], sample_offset + i), product and sum
// each rounded in float32 (float64 for float64), then to the dtype.
void noisy_repeat(const void* x, void* out, Dtype dtype, const NoisyRepeat& call, int threads);

// out[b] = sum over its num_samples consecutive rows of grad, added in their order.
void noisy_repeat_backward(const void* grad, void* out, Dtype dtype, std::int64_t batch,
                           std::int64_t num_samples, std::int64_t pixels, int threads);

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
