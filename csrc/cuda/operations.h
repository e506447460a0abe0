// What bindings.cpp calls: plain C++ types, so that the host compiler needs no CUDA header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace drf_fast::cuda {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Where to run: the device's index, and the stream as the integer that torch gives.
struct Place {
  int device;
  std::uintptr_t stream;
};

// Empty when the driver can run this build, else one sentence why it cannot.
std::string why_not();

// The compute capabilities with machine code in this build, 75 for 7.5, ascending; PTX of the last.
std::vector<int> architectures();

// counts[image][argmax of each of its rows] += 1. logits is (rows, classes), the rows of an image
// consecutive; rows is a multiple of images. Ties go to the lowest class, a row with a NaN votes
// for none.
void vote(const void* logits, Dtype dtype, std::int64_t rows, std::int64_t classes,
          std::int64_t* counts, std::int64_t images, Place place);

// Lower confidence bounds and certified radii of the counts; common/clopper_pearson.h and
// certified_radius.h. All pointers are to device memory. 0 where a value has no meaning: alpha
// outside (0, 1), trials outside [1, 2^53], successes outside [0, trials], sigma that is not
// positive and finite.
void clopper_pearson_lower(const std::int64_t* successes, const std::int64_t* trials,
                           const double* alpha, double* out, std::int64_t size, Place place);
void certified_radius(const std::int64_t* successes, const std::int64_t* trials,
                      const double* sigma, const double* alpha, double* out, std::int64_t size,
                      Place place);

}  // namespace drf_fast::cuda
