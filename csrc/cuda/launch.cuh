// Shared by all launches: errors as exceptions, the current device set and restored, grid sizes.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/operations.h"

namespace drf_fast::cuda {

inline const char* remedy(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return "update the NVIDIA driver, or reinstall drf_fast with an older CUDA toolkit";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return "reinstall drf_fast with a CUDA toolkit that knows this GPU, or set "
             "DRF_FAST_BACKEND=reference";
    case cudaErrorMemoryAllocation:
      return "use a smaller batch";
    default:
      return "set CUDA_LAUNCH_BLOCKING=1 to see where it began, or DRF_FAST_BACKEND=reference";
  }
}

inline std::string sentence(const char* what, cudaError_t error) {
  return std::string(what) + ": expected success from CUDA, got '" + cudaGetErrorString(error) +
         "'; " + remedy(error);
}

inline void check(const char* what, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(sentence(what, error));
}

// Makes a device current during its lifetime. torch reads the same thread-local state of the
// runtime as its current device, so it must be restored on every exit.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check("cudaGetDevice", cudaGetDevice(&before_));
    if (device != before_) check("cudaSetDevice", cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline cudaStream_t stream_of(const Place& place) {
  return reinterpret_cast<cudaStream_t>(place.stream);
}

// Blocks for a grid-stride loop over `threads` threads: enough to fill the device, never more than
// 2^31 - 1 however large the input is.
inline unsigned blocks_for(std::int64_t threads, int block, int device) {
  constexpr std::int64_t kBlocksPerProcessor = 8;
  int processors = 1;
  check("cudaDeviceGetAttribute",
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const std::int64_t needed = (threads + block - 1) / block;
  return static_cast<unsigned>(
      std::max<std::int64_t>(1, std::min(needed, processors * kBlocksPerProcessor)));
}

}  // namespace drf_fast::cuda
