// Macros that let one header compile for the host, for CUDA devices and for CPU tests of kernels.
#pragma once

#if defined(__CUDACC__)
#define DRF_HD __host__ __device__
#else
#define DRF_HD
#endif

// Forces inlining, so that small functions are compiled for the instruction set of the loop that
// calls them.
#if defined(__CUDACC__)
#define DRF_INLINE __forceinline__
#elif defined(__GNUC__)
#define DRF_INLINE inline __attribute__((always_inline))
#else
#define DRF_INLINE inline
#endif

// 1 where code is compiled for a GPU, or for a test that runs a GPU's code on the CPU.
#if defined(__CUDA_ARCH__) || defined(DRF_FAST_CUDA_ON_CPU)
#define DRF_DEVICE_CODE 1
#else
#define DRF_DEVICE_CODE 0
#endif
