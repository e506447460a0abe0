// Shared by the kernels of both confidence bounds: one thread a count.
//
// They cannot raise an error without synchronising the host with the device. Arguments that the CPU
// rejects give 0 here: a probability is at least 0 and a radius of 0 certifies nothing, whereas NaN
// passes for certified wherever p < 1/2 is the test for abstention.
#pragma once

#include <cstdint>

#include "common/clopper_pearson.h"

namespace drf_fast::cuda {

// Threads of a block. Small, because one count is long work and a batch may be a few hundred
// images: blocks should spread over all multiprocessors. 8 resident blocks of 64 threads leave 128
// registers a thread; with the compiler's own choice some spill.
constexpr int kBoundBlock = 64;
constexpr int kBoundBlocksPerProcessor = 8;

__device__ __forceinline__ bool are_counts(std::int64_t successes, std::int64_t trials) {
  constexpr std::int64_t kMostTrials = std::int64_t{1} << 53;  // integers are exact up to here
  return trials >= 1 && trials <= kMostTrials && successes >= 0 && successes <= trials;
}

// out[i] = finish(bound of successes[i] of trials[i]), or 0. One thread of a block
// computes what depends on alpha alone, for all of them.
template <typename Finish>
__device__ __forceinline__ void for_each_bound(const std::int64_t* __restrict__ successes,
                                               const std::int64_t* __restrict__ trials,
                                               double alpha, double* __restrict__ out,
                                               std::int64_t size, const Finish& finish) {
  __shared__ Level level;
  const bool is_level = alpha > 0.0 && alpha < 1.0;
  if (threadIdx.x == 0 && is_level) level = make_level(alpha);
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = first; i < size; i += threads) {
    const std::int64_t k = successes[i], n = trials[i];
    out[i] =
        is_level && are_counts(k, n)
            ? finish(clopper_pearson_bound(static_cast<double>(k), static_cast<double>(n), level))
            : 0.0;
  }
}

}  // namespace drf_fast::cuda
