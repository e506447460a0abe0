// The GPUs that this build can run on.
#include "cuda/launch.cuh"

namespace drf_fast::cuda {

std::string why_not() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  return error == cudaSuccess ? "" : sentence("cudaGetDeviceCount", error);
}

std::vector<int> architectures() {
  std::vector<int> found{__CUDA_ARCH_LIST__};  // of nvcc: 750, 800, ...
  for (int& architecture : found) architecture /= 10;
  return found;
}

}  // namespace drf_fast::cuda
