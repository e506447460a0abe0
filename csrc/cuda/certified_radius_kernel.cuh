// The kernel of certified_radius. It holds no launch, so a host build can run this very source.
#pragma once

#include "common/certified_radius.h"
#include "cuda/bound_kernel.cuh"

namespace drf_fast::cuda {

struct Radius {
  double sigma;

  __device__ double operator()(const LowerBound& bound) const {
    const bool is_sigma = sigma > 0.0 && sigma < static_cast<double>(INFINITY);
    return is_sigma ? certified_radius_of(bound, sigma) : 0.0;
  }
};

// sigma and alpha are read from memory: launch arguments would be the same in every replay of a
// CUDA graph.
__global__ void __launch_bounds__(kBoundBlock, kBoundBlocksPerProcessor)
    certified_radius_kernel(const std::int64_t* __restrict__ successes,
                            const std::int64_t* __restrict__ trials,
                            const double* __restrict__ sigma, const double* __restrict__ alpha,
                            double* __restrict__ out, std::int64_t size) {
  for_each_bound(successes, trials, *alpha, out, size, Radius{*sigma});
}

}  // namespace drf_fast::cuda
