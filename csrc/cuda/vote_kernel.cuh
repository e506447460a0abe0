// The kernel of vote. It holds no launch and no torch, so a host build can run this very source.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

namespace drf_fast::cuda {

// Values are compared in float32, float64 ones in float64; float32 holds both halves exactly.
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// kLanes neighbouring threads share a row: few for few classes (no idle lanes), a warp for many
// (coalesced loads). Neighbouring groups take neighbouring rows, so a warp's loads are contiguous.
//
// Most rows of an image elect one class, and as many atomics on one address would be serialised. So
// each group counts a run of equal votes in a register and adds it when the vote changes. Integer
// addition commutes: the result does not depend on the order of the groups.
template <int kLanes, typename T>
__global__ void vote_kernel(const T* __restrict__ logits,  // (rows, classes)
                            std::int64_t rows, std::int64_t classes, std::int64_t rows_per_image,
                            unsigned long long* __restrict__ counts) {  // (images, classes)
  constexpr std::int64_t kNoClass = INT64_MAX;
  const int lane = threadIdx.x % kLanes;
  // Groups of a warp may leave the loop in different iterations: each synchronises its own lanes.
  const unsigned group_mask = (0xffffffffu >> (32 - kLanes)) << (threadIdx.x % 32 - lane);
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t groups = static_cast<std::int64_t>(gridDim.x) * blockDim.x / kLanes;

  std::int64_t pending_slot = -1;
  unsigned long long pending = 0;
  for (std::int64_t row = thread / kLanes; row < rows; row += groups) {
    const T* values = logits + row * classes;
    using Wide = decltype(widen(*values));
    Wide best = -static_cast<Wide>(INFINITY);
    std::int64_t winner = kNoClass;  // loses every tie, so a row of -inf elects class 0
    bool has_nan = false;
    for (std::int64_t k = lane; k < classes; k += kLanes) {
      const Wide value = widen(values[k]);
      has_nan |= value != value;
      if (value > best || (value == best && k < winner)) {
        best = value;
        winner = k;
      }
    }
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      const Wide other = __shfl_xor_sync(group_mask, best, distance);
      const std::int64_t rival = __shfl_xor_sync(group_mask, winner, distance);
      if (other > best || (other == best && rival < winner)) {
        best = other;
        winner = rival;
      }
    }
    if (__any_sync(group_mask, has_nan)) continue;
    const std::int64_t slot = row / rows_per_image * classes + winner;
    if (slot != pending_slot) {
      if (lane == 0 && pending > 0) atomicAdd(counts + pending_slot, pending);
      pending_slot = slot;
      pending = 0;
    }
    ++pending;
  }
  if (lane == 0 && pending > 0) atomicAdd(counts + pending_slot, pending);
}

}  // namespace drf_fast::cuda
