// Launches certified_radius, without waiting for the device.
#include "cuda/certified_radius_kernel.cuh"
#include "cuda/launch.cuh"

namespace drf_fast::cuda {

void certified_radius(const std::int64_t* successes, const std::int64_t* trials,
                      const double* sigma, const double* alpha, double* out, std::int64_t size,
                      Place place) {
  if (size == 0) return;  // an empty grid is a launch error
  const DeviceGuard guard(place.device);
  const unsigned blocks = blocks_for(size, kBoundBlock, place.device);
  certified_radius_kernel<<<blocks, kBoundBlock, 0, stream_of(place)>>>(successes, trials, sigma,
                                                                        alpha, out, size);
  check("certified_radius", cudaGetLastError());
}

}  // namespace drf_fast::cuda
