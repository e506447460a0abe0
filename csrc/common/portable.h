// Macros that let one header compile for the host, for CUDA devices and for CPU tests of kernels.
#pragma once

// Bounds are safe because every rounding error is known.
#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
#error "expected IEEE arithmetic, got -ffast-math or /fp:fast: compile drf_fast without it"
#endif

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

// Before a loop: vectorise it, whatever the compiler's own estimate says; no iteration depends on
// another. MSVC refuses this directive under /openmp, and under /openmp:experimental it computes
// the loop with /fp:fast, which would change its results. So it gets none.
#if defined(_MSC_VER) && !defined(__clang__)
#define DRF_SIMD
#else
#define DRF_SIMD _Pragma("omp simd")
#endif

// 1 where code is compiled for a GPU, or for a test that runs a GPU's code on the CPU.
#if defined(__CUDA_ARCH__) || defined(DRF_FAST_CUDA_ON_CPU)
#define DRF_DEVICE_CODE 1
#else
#define DRF_DEVICE_CODE 0
#endif
