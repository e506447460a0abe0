"""Who runs an operation: dispatch, Triton's kernels, the C++ and CUDA cores, the reference."""
