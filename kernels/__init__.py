"""Triton kernels of drf_fast, one operation a file, installed as ``drf_fast.kernels``.

There is none yet: operations on CUDA tensors run on the reference backend, and ``drf-fast doctor``
says so. ``backends/cuda.py`` is where a kernel becomes the implementation of its operation.
"""
