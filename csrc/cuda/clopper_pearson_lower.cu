// Launches clopper_pearson_lower, without waiting for the device.
#include "cuda/clopper_pearson_lower_kernel.cuh"
#include "cuda/launch.cuh"

namespace drf_fast::cuda {

void clopper_pearson_lower(const std::int64_t* successes, const std::int64_t* trials,
                           const double* alpha, double* out, std::int64_t size, Place place) {
  if (size == 0) return;  // an empty grid is a launch error
  const DeviceGuard guard(place.device);
  const unsigned blocks = blocks_for(size, kBoundBlock, place.device);
  clopper_pearson_lower_kernel<<<blocks, kBoundBlock, 0, stream_of(place)>>>(successes, trials,
                                                                             alpha, out, size);
  check("clopper_pearson_lower", cudaGetLastError());
}

}  // namespace drf_fast::cuda
