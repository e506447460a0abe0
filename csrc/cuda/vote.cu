// Launches vote: argmax and per-image histogram in one pass, without waiting for the device.
#include "cuda/launch.cuh"
#include "cuda/vote_kernel.cuh"

namespace drf_fast::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kFewClasses = 32;

template <int kLanes, typename T>
void launch(const void* logits, std::int64_t rows, std::int64_t classes, std::int64_t* counts,
            std::int64_t images, Place place) {
  const unsigned blocks = blocks_for(rows * kLanes, kBlock, place.device);
  vote_kernel<kLanes, T><<<blocks, kBlock, 0, stream_of(place)>>>(
      static_cast<const T*>(logits), rows, classes, rows / images,
      reinterpret_cast<unsigned long long*>(counts));
  check("vote", cudaGetLastError());
}

template <typename T>
void launch_for(const void* logits, std::int64_t rows, std::int64_t classes, std::int64_t* counts,
                std::int64_t images, Place place) {
  if (classes <= kFewClasses) {
    launch<4, T>(logits, rows, classes, counts, images, place);
  } else {
    launch<32, T>(logits, rows, classes, counts, images, place);
  }
}

}  // namespace

void vote(const void* logits, Dtype dtype, std::int64_t rows, std::int64_t classes,
          std::int64_t* counts, std::int64_t images, Place place) {
  if (rows == 0) return;  // an empty grid is a launch error
  const DeviceGuard guard(place.device);
  switch (dtype) {
    case Dtype::kFloat32:
      return launch_for<float>(logits, rows, classes, counts, images, place);
    case Dtype::kFloat64:
      return launch_for<double>(logits, rows, classes, counts, images, place);
    case Dtype::kBFloat16:
      return launch_for<__nv_bfloat16>(logits, rows, classes, counts, images, place);
    case Dtype::kFloat16:
      return launch_for<__half>(logits, rows, classes, counts, images, place);
  }
}

}  // namespace drf_fast::cuda
