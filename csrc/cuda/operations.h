// What bindings.cpp calls: plain C++ types, so that the host compiler needs no CUDA header.
#pragma once

#include <cstdint>
#include <string>

namespace drf_fast::cuda {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Where to run: the device's index, and the stream as the integer that torch gives.
struct Place {
  int device;
  std::uintptr_t stream;
};

// Empty when the driver can run this build, else one sentence why it cannot.
std::string why_not();

// counts[image][argmax of each of its rows] += 1. logits is (rows, classes), the rows of an image
// consecutive; rows is a multiple of images. Ties go to the lowest class, a row with a NaN votes
// for none.
void vote(const void* logits, Dtype dtype, std::int64_t rows, std::int64_t classes,
          std::int64_t* counts, std::int64_t images, Place place);

}  // namespace drf_fast::cuda
