"""Triton kernels of drf_fast, installed as ``drf_fast.kernels``.

One file per operation (``noisy_repeat``, ``noisy_levels``, ``smooth_ce``, ``consistency_loss``,
``macer_loss``, ``adversary_step``), with the operation's name; ``backends/triton.py`` dispatches to
them for CUDA tensors. Modules that several kernels share:

* ``launch``: compiles and starts a kernel, with the launch chosen from shapes alone;
* ``loss_call`` and ``rows``: the launches of the three losses, and operations on rows of logits;
* ``images``, ``normals``, ``ball``, ``scalars``, ``dtypes``: tiles of images, the noise of a tile,
  the balls of the adversary, numbers that change from step to step, element types;
* ``quantile``: the normal quantile in float64, for MACER.

docs/kernels.md has counts of what they read and write, and how they are tested without a GPU.
"""
