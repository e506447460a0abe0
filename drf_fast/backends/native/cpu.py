"""The operations of the C++ core, for CPU tensors; none where it is not built."""

from __future__ import annotations

from drf_fast.backends.native import library
from drf_fast.backends.native.adversary import adversary_step
from drf_fast.backends.native.counting import certified_radius, clopper_pearson_lower, vote
from drf_fast.backends.native.losses import consistency_loss, macer_loss, smooth_ce
from drf_fast.backends.native.noise import noisy_levels, noisy_repeat, noisy_repeat_backward
from drf_fast.backends.native.pooling import (
    max_pool_relu,
    max_pool_relu_backward,
    pooled_image_gradient,
)

_IMPLEMENTED = (
    noisy_levels,
    noisy_repeat,
    noisy_repeat_backward,
    smooth_ce,
    consistency_loss,
    macer_loss,
    adversary_step,
    max_pool_relu,
    max_pool_relu_backward,
    pooled_image_gradient,
    vote,
    clopper_pearson_lower,
    certified_radius,
)

# Operation -> its backend, for those that this installation can run.
OPERATIONS: dict[str, str] = (
    {function.__name__: "native" for function in _IMPLEMENTED} if library.available() else {}
)
