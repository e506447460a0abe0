// The kernel of clopper_pearson_lower. It holds no launch, so a host build can run this very
// source.
#pragma once

#include "cuda/bound_kernel.cuh"

namespace drf_fast::cuda {

struct LowerEnd {
  __device__ double operator()(const LowerBound& bound) const { return bound.p; }
};

// alpha is read from memory: a launch argument would be the same in every replay of a CUDA graph.
__global__ void __launch_bounds__(kBoundBlock, kBoundBlocksPerProcessor)
    clopper_pearson_lower_kernel(const std::int64_t* __restrict__ successes,
                                 const std::int64_t* __restrict__ trials,
                                 const double* __restrict__ alpha, double* __restrict__ out,
                                 std::int64_t size) {
  for_each_bound(successes, trials, *alpha, out, size, LowerEnd{});
}

}  // namespace drf_fast::cuda
