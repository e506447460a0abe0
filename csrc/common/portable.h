// What lets one header compile for the host, for CUDA devices and for the CPU tests of the kernels.
#pragma once

#if defined(__CUDACC__)
#define DRF_HD __host__ __device__
#else
#define DRF_HD
#endif
